"""What a small run spends before and after its work."""

import json

import pytest

from bench import startup

pytestmark = [pytest.mark.cluster, pytest.mark.full]


def test_the_last_line_is_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    startup.main(["--images", "4", "--rounds", "1", "--json"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert 0 < figures["first_commit"] < figures["whole"]
    assert figures["cpu"] > 5 and figures["processes"] > 5
