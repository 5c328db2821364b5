from pathlib import Path

from setuptools import find_namespace_packages, setup

OCR = [
    "rapidocr>=3.10",  # carries the PP-OCRv6-small weights that both engines read
    "onnxruntime>=1.20",
    # Each engine brings OpenCV under a name of its own, into the same cv2; PaddleOCR 3 accepts no other version.
    "opencv-python-headless==4.10.0.84",
    "python-Levenshtein>=0.25",
    "scipy>=1.11",
]
PADDLEOCR = [
    *OCR,
    "paddleocr>=2.10,!=3.0.*,!=3.1.*,!=3.2.*,!=3.3.*,!=3.4.*,!=3.5.*,!=3.6.*",  # 3.0 to 3.6 know no PP-OCRv6
    "opencv-contrib-python==4.10.0.84",
]
TRAIN = [
    "torch>=2.13",  # whose FSDP2 takes frozen half and trained fp32 weights in one block
    "accelerate>=1.15",  # earlier ones have not been tried
    "diffusers>=0.35",  # saves a LoRA's scale in its metadata
    "transformers>=5",  # the tiny model's tokenizers
    "peft>=0.17",
    "wandb>=0.28",  # whose uploads at the end of a run can be given a limit
    "ml_collections>=1.0",
    "absl-py>=2.1",
    "tqdm>=4.66",
    "jinja2>=3.1",  # the report of a run
    "sentencepiece>=0.2",
    "protobuf>=4.25",
]
DEEPSPEED = ["deepspeed>=0.19"]
DOCS = ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.29", "nbclient>=0.10", "ipykernel>=6.29"]
DEV = [
    "paddleocr>=3.7",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "hypothesis>=6.100",
    "torchcam>=0.5",  # what our CLIP maps are held against
    "captum>=0.8",
    "ruff>=0.8",
    "matplotlib>=3.8",
]

setup(
    # The package is flow_grpo; the distribution is not, since pip would replace a fork of that name by it.
    name="flow-grpo-maps",
    version="0.1.0",
    description="Flow-GRPO training of text-to-image flow models with pixel-level reward maps",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_namespace_packages(include=["flow_grpo", "flow_grpo.*"]),
    install_requires=["torch>=2.6", "numpy>=1.26", "pillow>=10.1"],  # the scorers' floor
    extras_require={
        "clip": ["transformers>=4.56"],
        "ocr": OCR,
        "paddleocr": PADDLEOCR,
        "train": TRAIN,
        "deepspeed": TRAIN + DEEPSPEED,
        "demo": ["matplotlib>=3.8"],
        "docs": DOCS,
        "dev": PADDLEOCR + TRAIN + DEEPSPEED + DOCS + DEV,
    },
    classifiers=["Programming Language :: Python :: 3", "Topic :: Scientific/Engineering :: Artificial Intelligence"],
)
