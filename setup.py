"""The distribution `flow-grpo-maps` installs the package `flow_grpo_maps`: the scorers and the mathematics of flow_grpo/.

A fork of Flow-GRPO has a `flow_grpo` of its own, and two packages of one name hide each other. So the files of our
flow_grpo/ import one another relatively, and are installed under a name that nobody else has. The trainer is not
installed: it runs in a checkout, which finds `flow_grpo` in its own folder.
"""

import ast
from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

VERSION = "0.1.0"
SOURCE, PACKAGE = Path(__file__).with_name("flow_grpo"), "flow_grpo_maps"
MATHEMATICS = ("sde", "objective", "advantages", "records", "patches")  # of training/: what a fork's own trainer calls

OCR = [
    "rapidocr>=3.10",  # carries the PP-OCRv6-small weights that both engines read
    "onnxruntime>=1.20",
    "opencv-python-headless>=4.10,<4.12",  # 4.12 wants numpy 2; Flow-GRPO pins numpy 1.26 and opencv-python 4.11
    "python-Levenshtein>=0.25",
    "scipy>=1.11",
]
PADDLEOCR = [
    *OCR,
    "paddleocr>=2.10,!=3.0.*,!=3.1.*,!=3.2.*,!=3.3.*,!=3.4.*,!=3.5.*,!=3.6.*",  # 3.0 to 3.6 know no PP-OCRv6
    # Each engine brings OpenCV under a name of its own, into the same cv2; PaddleOCR 3 accepts no other version. The last is
    # what `gold` brings: with both extras pip would else lay 4.11 over 4.10.
    "opencv-contrib-python==4.10.0.84",
    "opencv-python-headless==4.10.0.84",
    "opencv-python==4.10.0.84",
]
# A second reader. Of the package only the PP-OCRv4 weights are read; it asks for an OpenCV that wants a display.
GOLD = [*OCR, "rapidocr-onnxruntime>=1.4.4; python_version < '3.13'", "opencv-python>=4.10,<4.12"]
REMOTE = [
    "starlette>=0.40",
    "uvicorn>=0.30",
    "anyio>=4",
    "h11>=0.14",
    "httpx>=0.27",
    "tenacity>=8.3",
    "safetensors>=0.4.3",
]
TRAIN = [
    "torch>=2.13",  # whose FSDP2 takes frozen half and trained fp32 weights in one block
    "accelerate>=1.15",  # earlier ones have not been tried
    "diffusers>=0.42",  # has the pipelines of all families, whose sampling ours is held against
    "transformers>=5",  # the tiny model's tokenizers
    "peft>=0.17",
    "wandb>=0.28",  # whose uploads at the end of a run can be given a limit
    "ml_collections>=1.0",
    "pydantic>=2.7",
    "psutil>=5.9",
    "tqdm>=4.66",
    "jinja2>=3.1",  # the report of a run
    "sentencepiece>=0.2",
    "protobuf>=4.25",
]
DOCS = ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.29", "nbclient>=0.10", "ipykernel>=6.29"]
DEV = [
    "setuptools>=70.1",  # builds a wheel without the package wheel
    "paddleocr>=3.7",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "torchcam>=0.5",  # what our CLIP maps are held against
    "captum>=0.8",
    "noto-cjk-sans-otc",  # a font for Chinese, OFL 1.1
    "ruff>=0.8",
    "matplotlib>=3.8",
]


def mathematics() -> set[str]:
    """Names of the modules of training/ that are installed: MATHEMATICS, and what those import of its neighbours."""
    names, found = [name for name in MATHEMATICS if (SOURCE / "training" / f"{name}.py").exists()], set()
    while names:
        found.add(name := names.pop())
        for node in ast.walk(ast.parse((SOURCE / "training" / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 1:  # from .module import names; from . import modules
                modules = [node.module] if node.module else [alias.name for alias in node.names]
                names += [module for module in modules if module not in found]
    return found


class BuildPackage(build_py):
    """Leaves the trainer's modules out, and writes the package's __init__.py, which flow_grpo/ has none of."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        if package != f"{PACKAGE}.training":
            return modules
        kept = mathematics()
        return [row for row in modules if row[1] in kept]

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            docstring = "Reward maps for Flow-GRPO: scorers, and the mathematics that spreads an advantage over tokens."
            written = f'"""{docstring}"""\n\n__version__ = "{VERSION}"\n'
            (Path(self.build_lib) / PACKAGE / "__init__.py").write_text(written, encoding="utf-8")


rooms = [room for room in find_namespace_packages(str(SOURCE)) if room.partition(".")[0] != "training"]

setup(
    name="flow-grpo-maps",
    version=VERSION,
    description="Flow-GRPO training of text-to-image flow models with pixel-level reward maps",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    package_dir={PACKAGE: "flow_grpo"},
    packages=[PACKAGE, *(f"{PACKAGE}.{room}" for room in (*rooms, "training"))],
    package_data={PACKAGE: ["py.typed"]},
    cmdclass={"build_py": BuildPackage},
    install_requires=["torch>=2.6", "numpy>=1.26", "pillow>=10.1"],  # the scorers' floor
    extras_require={
        "clip": ["transformers>=4.40"],  # Flow-GRPO's; a bound above it would raise the fork's
        "ocr": OCR,
        "paddleocr": PADDLEOCR,
        "gold": GOLD,
        "remote": REMOTE,
        "train": TRAIN,
        "demo": ["matplotlib>=3.8"],
        "docs": DOCS,
        "dev": PADDLEOCR + GOLD + REMOTE + TRAIN + DOCS + DEV,
    },
    classifiers=["Programming Language :: Python :: 3", "Topic :: Scientific/Engineering :: Artificial Intelligence"],
)
