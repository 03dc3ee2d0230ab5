from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def constant(name: str) -> str:
    """The value of a literal line of compute/__init__.py, read as text so that nothing needs importing."""
    for line in (ROOT / "compute" / "__init__.py").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name} = "):
            return line.split('"')[1]
    raise RuntimeError(f"compute/__init__.py has no line {name!r}")


def requirements(file_name: str) -> list[str]:
    lines = (ROOT / file_name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r "))]


setup(
    name="compute-subnet",
    version=constant("__version__"),
    description="A Bittensor subnet of rented GPU machines that are proven before they are paid",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["compute", "compute.*", "neurons", "neurons.*"]),
    package_data={"compute": ["py.typed"], "compute.localnet": ["*.yaml"]},
    install_requires=requirements("requirements.txt"),
    entry_points={"console_scripts": ["register.py = neurons.register:run"]},
    extras_require={"dev": requirements("requirements-dev.txt")},
)
