"""The packages and the compiled libraries; everything else is in pyproject.toml."""

import sys
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools" / "build"))

import native  # noqa: E402

LIBRARIES = ("_C_cpu", "_C_cuda")  # no Python modules: torch.ops.load_library loads them in any Python


class Build(build_ext):
    """Runs CMake in a fresh folder, so that nothing of an earlier build gets in, and takes the libraries from there.

    A wheel holds the libraries alone, so it serves every Python; an editable install also has the module wilson._C.
    """

    def run(self) -> None:
        for stale in Path(self.build_lib, "wilson").glob("_C*.so"):
            stale.unlink()
        with tempfile.TemporaryDirectory(prefix="wilson-build-") as folder:
            self.built = Path(folder, "cmake")
            native.build(ROOT, self.built, python_module=self.editable_mode)
            self.extensions = [extension for extension in self.extensions if self._library(extension).exists()]
            super().run()

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(self._library(ext)), str(target))

    def get_ext_filename(self, fullname: str) -> str:
        *package, name = fullname.split(".")
        return str(Path(*package, f"{name}.so")) if name in LIBRARIES else super().get_ext_filename(fullname)

    def _library(self, ext: Extension) -> Path:
        return self.built / Path(self.get_ext_filename(ext.name)).name


class Wheel(bdist_wheel):
    """A wheel of this platform for every Python, as nothing in it is of one."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if native.mode() != "none" else (python, abi, platform)


setup(
    packages=[*find_packages(include=["wilson", "wilson.*"]), "wilson.kernels"],
    package_dir={"wilson.kernels": "kernels"},
    package_data={"wilson.serving": ["*.css", "*.js"]},
    ext_modules=[] if native.mode() == "none" else [Extension(f"wilson.{name}", []) for name in ("_C", *LIBRARIES)],
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
)
