"""Folders that are made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvr.cache import cache_folder, made_aside


def test_the_folder_has_its_name_only_once_it_is_whole_and_everybody_may_read_it(tmp_path: Path) -> None:
    final = tmp_path / "cache" / "model"
    with made_aside(final) as folder:
        (folder / "weights").write_text("1")
        assert not final.exists()
    assert [path.name for path in final.iterdir()] == ["weights"]
    assert final.stat().st_mode & 0o777 == 0o755
    assert list(final.parent.iterdir()) == [final]


def test_nothing_is_left_of_a_folder_that_failed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), made_aside(tmp_path / "model") as folder:
        (folder / "absent" / "weights").write_text("1")
    assert list(tmp_path.iterdir()) == []


def test_of_two_programs_the_first_to_finish_wins(tmp_path: Path) -> None:
    final = tmp_path / "model"
    with made_aside(final) as folder:
        (folder / "weights").write_text("slow")
        with made_aside(final) as other:
            (other / "weights").write_text("fast")
    assert (final / "weights").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [final]


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    final = tmp_path / "model"
    final.write_text("")
    with pytest.raises(OSError, match="model"), made_aside(final):
        pass


def test_the_cache_is_in_the_home_folder_unless_the_environment_names_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RLVR_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "rlvr"
    monkeypatch.setenv("RLVR_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")
