"""The packages and the compiled libraries; everything else is in pyproject.toml."""

import sys
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools" / "build"))

import native  # noqa: E402


class Build(build_ext):
    """Runs CMake in a fresh folder, so that nothing of an earlier build gets in, and takes the libraries from there."""

    def run(self) -> None:
        for stale in Path(self.build_lib, "wilson").glob("_C*.so"):
            stale.unlink()
        with tempfile.TemporaryDirectory(prefix="wilson-build-") as folder:
            self.built = Path(folder, "cmake")
            native.build(ROOT, self.built)
            self.extensions = [extension for extension in self.extensions if self._library(extension).exists()]
            super().run()

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(self._library(ext)), str(target))

    def get_ext_filename(self, fullname: str) -> str:
        # The CUDA library is no Python module, torch.ops.load_library loads it: its name has no interpreter's tag.
        *package, name = fullname.split(".")
        return str(Path(*package, "_C_cuda.so")) if name == "_C_cuda" else super().get_ext_filename(fullname)

    def _library(self, ext: Extension) -> Path:
        return self.built / Path(self.get_ext_filename(ext.name)).name


setup(
    packages=[*find_packages(include=["wilson", "wilson.*"]), "wilson.kernels"],
    package_dir={"wilson.kernels": "kernels"},
    package_data={"wilson.serving": ["*.css", "*.js"]},
    ext_modules=[] if native.mode() == "none" else [Extension("wilson._C", []), Extension("wilson._C_cuda", [])],
    cmdclass={"build_ext": Build},
)
