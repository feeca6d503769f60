"""The similarity of class names: the table, its file, and the sentence models it is made with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.data_sets import mask_of, write_voc
from tests.support.tiny_runs import one_line
from wilson.cli import explain, main
from wilson.data.similarity import read_similarity
from wilson.priors.names import embed, sentences, similarity

NAMES = ("background", "horse", "sofa")
WORDS = ["[PAD]", "[UNK]", "this", "is", "an", "image", "of", "unknown", "horse", "sofa", "dog", "red"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "voc", {"a": mask_of(0, 1)}, classes=NAMES)


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random sentence model."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    save_tokenizer(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose states are rows of a table."""
    from onnx import TensorProto, helper, numpy_helper, save

    folder = tmp_path_factory.mktemp("onnx")
    save_tokenizer(folder)
    (folder / "onnx").mkdir()
    table = np.random.default_rng(0).normal(size=(len(WORDS), 5)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["states"])],
        "states",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["M", "T"])],
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, ["M", "T", 5])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, folder / "onnx" / "model.onnx")
    np.save(folder / "table.npy", table)
    return folder


def test_the_table_is_that_of_the_equation() -> None:
    vectors = torch.tensor([[3.0, 0, 0], [0, 2, 0], [1, 1, 0]])
    expected = np.exp(-5 * (1 - np.array([[1, 0, 0.5**0.5], [0, 1, 0.5**0.5], [0.5**0.5, 0.5**0.5, 1]])))
    torch.testing.assert_close(similarity(vectors), torch.from_numpy(expected).float())


def test_the_background_is_unknown() -> None:
    said = ["this is an image of unknown", "this is an image of horse", "this is an image of sofa"]
    assert sentences(NAMES) == said


def test_sentences_of_any_length_are_embedded_as_if_alone(bert: Path) -> None:
    """The mean is over a sentence's own tokens, not over what fills it up to the longest."""
    from transformers import BertModel

    model = BertModel.from_pretrained(bert).eval()
    found = embed(bert, ["horse", "this is an image of a red horse"])
    for vector, ids in zip(found, ([8], [2, 3, 4, 5, 6, 1, 11, 8]), strict=True):
        with torch.no_grad():
            alone = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, alone)


def test_a_model_may_take_the_first_token(bert: Path, tmp_path: Path) -> None:
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    first, mean = embed(tmp_path, ["horse", "red horse"]), embed(bert, ["horse", "red horse"])
    torch.testing.assert_close(first[0], mean[0])
    assert not torch.allclose(first[1], mean[1])


def test_an_onnx_model(onnx_model: Path) -> None:
    table = torch.from_numpy(np.load(onnx_model / "table.npy"))
    found = embed(onnx_model, ["red horse", "sofa"])
    torch.testing.assert_close(found, torch.stack([(table[11] + table[8]) / 2, table[9]]))


def command(root: Path, *more: str) -> list[str]:
    return ["prior", "names", "--out", str(root / "table.npz"), "--root", str(root), "--split", "train", *more]


def test_the_command_writes_what_a_step_reads(root: Path, bert: Path) -> None:
    assert main(command(root, "--model", str(bert))) == 0
    table = read_similarity(root / "table.npz", ("background", "couch", "horse"))  # in the order of a task
    expected = similarity(embed(bert, [sentences(NAMES)[0], "this is an image of sofa", "this is an image of horse"]))
    torch.testing.assert_close(table, expected)


def test_vectors_of_ones_own(root: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 6))
    np.savez(root / "vectors.npz", classes=["dog", "sofa", "unknown", "horse"], vectors=vectors)
    assert main(command(root, "--vectors", str(root / "vectors.npz"))) == 0
    expected = similarity(torch.from_numpy(vectors[[2, 3, 1]]).float())
    torch.testing.assert_close(read_similarity(root / "table.npz", NAMES), expected)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"classes": ["background", "horse"], "vectors": np.ones((2, 3))}, "lacks a vector of sofa"),
        ({"classes": [*NAMES], "vectors": np.ones((2, 3))}, "is no file of vectors: expected vectors (M, D) of M"),
        ({"classes": [*NAMES], "vectors": np.eye(3, 2)}, "the vector of sofa is 0 or not finite"),
        ({"classes": [*NAMES]}, "is no file of vectors: 'vectors is not a file"),
    ],
)  # fmt: skip
def test_a_bad_file_of_vectors_is_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], values: dict[str, np.ndarray], text: str
) -> None:
    np.savez(root / "vectors.npz", **values)  # type: ignore[arg-type]
    assert main(command(root, "--vectors", str(root / "vectors.npz"))) == 2
    assert f"vectors.npz: {text}" in one_line(capsys) and not (root / "table.npz").exists()


def test_a_missing_package_names_its_extra() -> None:
    for name in ("tokenizers", "transformers", "open_clip"):
        assert 'pip install "wilson-seg[prior]"' in str(explain(ModuleNotFoundError(name=name)))


def test_a_mistake_is_one_line(root: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, text in (
        ((), "give either --model"),
        (("--model", str(bert), "--vectors", "v.npz"), "give either --model"),
        (("--model", str(tmp_path)), "is no sentence model; expected a folder with tokenizer.json"),
    ):
        assert main(command(root, *options)) == 2
        assert text in one_line(capsys)
    save_tokenizer(tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{}")
    assert main(command(root, "--model", str(tmp_path / "broken"))) == 2
    assert "the sentence model cannot be run" in one_line(capsys)
