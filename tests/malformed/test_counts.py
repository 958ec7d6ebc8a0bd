"""How many malformed inputs are tried at each door of the library: at least 8, and 150 in all."""

import importlib
import math

import pytest

BAD = "malformed.test_"
DOORS = {
    "settings": "test_config:test_a_bad_value_is_named test_config:test_deep_nesting_is_one_line",
    "notebook parameters": f"{BAD}parameters:test_a_wrong_parameter_is_refused_in_one_message",
    "corpus folders": f"{BAD}corpora:test_malformed_corpora",
    "official readers": f"{BAD}corpora:test_malformed_official_files {BAD}official:test_a_damaged_official_file",
    "HowTo100M": f"{BAD}corpora:test_malformed_narrations",
    "videos": f"{BAD}videos:CASES",
    "images": f"{BAD}videos:IMAGES {BAD}videos:test_images_that_are_cut_short",
    "checkpoints": f"{BAD}checkpoints:test_what_is_no_checkpoint",
    "finished runs": f"{BAD}checkpoints:test_a_damaged_run_is_named",
    "model folders": "test_encoders:test_a_model_that_does_not_read_text_is_refused",
    "custom losses": "test_losses:test_a_loss_that_is_none_is_one_error",
    "command line": f"{BAD}command_line:test_what_is_typed_wrong",
}


def cases(place: str) -> int:
    """How many cases a test or a table has."""
    module, _, name = place.partition(":")
    found = getattr(importlib.import_module(module), name)
    tables = [mark.args[1] for mark in getattr(found, "pytestmark", ()) if mark.name == "parametrize"]
    return math.prod(len([*table]) for table in tables) if tables else len(found)


@pytest.mark.parametrize("door", DOORS)
def test_each_door_is_tried_in_eight_ways(door):
    assert sum(map(cases, DOORS[door].split())) >= 8


def test_150_cases_in_all_and_eight_of_each_official_reader():
    assert sum(cases(place) for places in DOORS.values() for place in places.split()) >= 150
    official = importlib.import_module(f"{BAD}official")
    tried = [reader for reader, *_ in official.CASES]
    assert official.READERS.keys() == {*tried} and min(map(tried.count, official.READERS)) >= 8
