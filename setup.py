"""What pyproject.toml cannot say: the weights lie in checkpoints/, and are `sam_bigltl/weights/` once installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sam_bigltl", "sam_bigltl.*"]), "sam_bigltl.weights"],
    package_dir={"sam_bigltl.weights": "checkpoints"},
)
