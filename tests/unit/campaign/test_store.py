"""The results file: what goes in comes out; what is wrong with it is said in one line and changes nothing."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from qertify.campaign.records import Record
from qertify.campaign.store import Store, create_store, open_store, resume_store
from qertify.errors import StoreError
from qertify.queries.robustness import verify
from tests.campaigns import SmallCampaign, verdicts


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallCampaign:
    return SmallCampaign(tmp_path_factory.mktemp("small"), count=4)


@pytest.fixture
def path(small: SmallCampaign, tmp_path: Path) -> Path:
    """A store with one answer."""
    with create_store(tmp_path / "r.db", small.campaign(), small.points) as store:
        store.add([answer(small)])
    return tmp_path / "r.db"


def answer(small: SmallCampaign, position: int = 0, radius: str = "2") -> Record:
    return Record(position, radius, verify(small.pose(position, Fraction(radius)).query))


def test_what_goes_in_comes_out(small: SmallCampaign, path: Path) -> None:
    with open_store(path) as store:
        assert store.campaign == small.campaign()
        assert [(p.sha256, p.label, p.predicted, p.outputs) for p in store.points()] == [
            (p.sha256, p.label, p.predicted, p.outputs) for p in small.points
        ]
        (record,) = store.records()
        assert replace(record.result, seconds=0) == replace(answer(small).result, seconds=0)
        assert store.answered() == {0: {"2"}}
    assert sorted(item.name for item in path.parent.iterdir()) == ["r.db"]


def test_an_answer_is_given_once_and_batches_are_whole(small: SmallCampaign, path: Path) -> None:
    with open_store(path, writing=True) as store:
        with pytest.raises(StoreError):
            store.add([answer(small, 1, "1"), answer(small, 0, "2")])
        assert store.answered() == {0: {"2"}}
        store.add([answer(small, 1, "1")])
        assert store.answered() == {0: {"2"}, 1: {"1"}}


def test_nothing_is_overwritten(small: SmallCampaign, path: Path) -> None:
    with pytest.raises(StoreError, match="--resume"):
        create_store(path, small.campaign(), small.points)
    with open_store(path) as store:
        assert len(verdicts(store)) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_digest": "0" * 64}, "another model"),
        ({"options": {"method": "auto", "timeout": 1.0, "seed": 0}}, r"another options \(timeout\)"),
        ({"radii": ("1",)}, "another radii"),
        ({"ties": "last"}, "another tie rule"),
    ],
)
def test_another_campaign_is_refused(small: SmallCampaign, path: Path, change: dict[str, object], said: str) -> None:
    before = path.read_bytes()
    with pytest.raises(StoreError, match=said):
        resume_store(path, small.campaign(**change), small.points)
    with open_store(path) as store:
        assert len(verdicts(store)) == 1
    assert len(path.read_bytes()) == len(before)


def test_other_inputs_are_refused(small: SmallCampaign, path: Path) -> None:
    with pytest.raises(StoreError, match="other inputs"):
        resume_store(path, small.campaign(), small.points[:3])
    with pytest.raises(StoreError, match="other inputs"):
        resume_store(path, small.campaign(), [replace(small.points[0], label=1 - small.points[0].label), *small.points[1:]])


def test_two_campaigns_do_not_write_at_once(small: SmallCampaign, path: Path) -> None:
    with open_store(path, writing=True), pytest.raises(StoreError, match="another campaign is writing"):
        open_store(path, writing=True)
    open_store(path, writing=True).close()


def test_it_can_be_read_while_it_is_written(small: SmallCampaign, path: Path) -> None:
    with open_store(path, writing=True) as writer, open_store(path) as reader:
        writer.add([answer(small, 2, "1")])
        assert reader.answered() == {0: {"2"}, 2: {"1"}}


def test_a_blank_file_is_a_campaign_that_was_killed_at_once(small: SmallCampaign, tmp_path: Path) -> None:
    (tmp_path / "r.db").touch()
    with resume_store(tmp_path / "r.db", small.campaign(), small.points) as store:
        assert len(list(store.points())) == 4


@pytest.mark.parametrize("damage", ["text", "half", "zeroed", "schema", "foreign", "campaign", "codes", "verdict", "json"])
def test_damage_is_one_clear_line(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    statements = {
        "schema": "PRAGMA user_version = 99",
        "foreign": "PRAGMA application_id = 7",
        "campaign": "UPDATE campaign SET data = '{}'",
        "codes": "UPDATE points SET codes = x'00' WHERE position = 0",
        "verdict": "UPDATE results SET verdict = 'unknown'",
        "json": "UPDATE results SET result = '[]'",
    }
    match damage:
        case "text":
            path.write_text("no database at all, " * 50)
        case "half":
            path.write_bytes(data[: len(data) // 2])
        case "zeroed":
            data[4096:] = bytes(len(data) - 4096)
            path.write_bytes(data)
        case _:
            with closing(sqlite3.connect(path)) as connection, connection:
                connection.execute(statements[damage])
    with pytest.raises(StoreError) as error, open_store(path) as store:
        read(store)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def read(store: Store) -> None:
    list(store.points())
    list(store.records())


FILL = """
import resource, sys
from pathlib import Path
from qertify.campaign.records import Record
from qertify.campaign.store import open_store
from qertify.errors import StoreError
path = Path(sys.argv[1])
with open_store(path, writing=True) as store:
    record = next(store.records())
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    stored = 0
    try:
        for position in range(100_000):
            store.add([Record(1, str(position), record.result)])
            stored += 1
    except StoreError as error:
        print(stored, error)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs limits on file sizes")
def test_a_full_disk_loses_nothing(path: Path) -> None:
    found = subprocess.run([sys.executable, "-c", FILL, str(path)], capture_output=True, text=True, timeout=60, check=True)
    stored, message = found.stdout.strip().split(" ", 1)
    assert "can't be written" in message
    assert "stays valid" in message
    assert int(stored) > 0
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA quick_check").fetchone()[0] == "ok"
        assert connection.execute("SELECT count(*) FROM results").fetchone()[0] == 1 + int(stored)
