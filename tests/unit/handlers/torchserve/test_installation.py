from pathlib import Path

import pytest

from serveprune.errors import FailedPrecondition, MissingExtra
from serveprune.handlers.torchserve.installation import java, require_package


def test_package_is_found_when_it_is_installed() -> None:
    assert (require_package("numpy") / "numpy" / "__init__.py").is_file()


def test_extra_is_named_when_a_package_is_missing() -> None:
    with pytest.raises(MissingExtra, match=r'no-such-package is not installed: pip install "serveprune\[torchserve\]"'):
        require_package("no-such-package")


def test_java_is_that_of_java_home_when_it_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "bin" / "java"
    binary.parent.mkdir()
    binary.touch(mode=0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert java() == str(binary)


def test_missing_java_is_told_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FailedPrecondition, match="on the PATH, got none: apt-get install openjdk-17-jre-headless"):
        java()


def test_missing_java_is_told_with_java_home_when_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(FailedPrecondition, match=rf"in JAVA_HOME \({tmp_path}\)"):
        java()
