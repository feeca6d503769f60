"""Putting patches in and out, in any order, and what is said where that cannot be done."""

import sys
import types

import pytest

from wilson import patch
from wilson.patch.handle import Patch, find


class Base:
    def loss(self):
        return "base"


class Model(Base):
    def forward(self, image):
        """Their forward."""
        return f"theirs {image}"


def make(original, handle):
    def forward(self, image):
        if image == "strange":
            handle.falls_back("the image is strange")
            return original(self, image)
        return f"ours {image}"

    return forward


def patched(owner=Model, method="forward", make=make):
    return Patch("model", owner, method, make)


@pytest.fixture(autouse=True)
def theirs():
    forward = Model.forward
    yield forward
    assert Model.forward is forward and "loss" not in vars(Model), "a test left a patch in place"


def test_acts_at_once_and_undoes(theirs):
    model = Model()  # made before
    handle = patched()
    assert model.forward("a") == "ours a" and Model.forward.__doc__ == "Their forward." and "in force" in repr(handle)
    handle.undo()
    assert model.forward("a") == "theirs a" and Model.forward is theirs and "undone" in repr(handle)
    handle.undo()
    assert Model.forward is theirs


def test_patching_twice_changes_nothing(theirs):
    one = patched()
    first = Model.forward
    two = patched()
    assert Model.forward is first
    two.undo()  # whoever undoes gets the library back
    assert Model.forward is theirs
    one.undo()
    assert Model.forward is theirs
    three = patched()
    one.undo(), two.undo()
    assert Model().forward("a") == "ours a"
    three.undo()


def test_a_context_inside_another_leaves_it_in_place(theirs):
    with patched() as outer:
        with patched():
            assert Model().forward("a") == "ours a"
        assert Model().forward("a") == "ours a"
        with pytest.raises(KeyError), patched():
            raise KeyError
        assert Model().forward("a") == "ours a"
        outer.undo()
        assert Model.forward is theirs
    with pytest.raises(KeyError), patched():
        raise KeyError
    assert Model.forward is theirs


def test_undone_below_another_patch(theirs, monkeypatch):
    handle = patched()
    below = Model.forward
    monkeypatch.setattr(Model, "forward", lambda self, image: f"over {below(self, image)}")
    assert Model().forward("a") == "over ours a"
    handle.undo()
    assert Model().forward("a") == "over theirs a"
    with patched():
        assert Model().forward("a") == "ours a"
        with pytest.warns(UserWarning, match="strange"):
            assert Model().forward("strange") == "over theirs strange"
    assert Model().forward("a") == "over theirs a"
    monkeypatch.setattr(Model, "forward", theirs)


def test_an_inherited_method_is_inherited_again():
    with patched(method="loss", make=lambda original, handle: lambda self: f"ours, not {original(self)}"):
        assert Model().loss() == "ours, not base" and Base().loss() == "base"
    assert Model().loss() == "base"


@pytest.mark.filterwarnings("error")
def test_one_warning_for_each_reason_and_patch():
    with patched() as handle:
        with pytest.warns(UserWarning, match="wilson.patch.model: the image is strange; the library's own loss"):
            assert Model().forward("strange") == "theirs strange"
        Model().forward("strange")
        with pytest.warns(UserWarning, match="another"):
            handle.falls_back("another")
        with patched() as inner:
            inner.falls_back("another")
    with patched(), pytest.warns(UserWarning, match="strange"):
        Model().forward("strange")


@pytest.mark.parametrize(
    ("call", "package", "module"),
    [
        (patch.transformers_segformer, "transformers", "transformers.models.segformer.modeling_segformer"),
        (patch.mmseg, "mmsegmentation", "mmseg.models.decode_heads.decode_head"),
        (patch.smp, "segmentation-models-pytorch", "segmentation_models_pytorch.base.heads"),
    ],
)
def test_a_library_that_is_missing_or_another(call, package, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"wilson.patch.{call.__name__}: .*pip install {package}"):
        call()
    monkeypatch.setitem(sys.modules, module.partition(".")[0], types.SimpleNamespace(__version__="0.0.1"))
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace())
    with pytest.raises(
        RuntimeError, match=rf"wilson.patch.{call.__name__}: expected {module}.* got none in {package} 0.0.1"
    ):
        call()


def test_a_method_of_other_arguments():
    with pytest.raises(RuntimeError, match=r"forward\(self, pixels, ...\), got \(self, image\) in tests"):
        find("model", "tests", __name__, "Model", "forward", ("self", "pixels"))
    assert find("model", "tests", __name__, "Model", "forward", ("self", "image")) is Model
