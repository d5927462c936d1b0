"""The table of exact errors is printed, and says what the page says."""

from laurel_worlds import stopping_rules


def test_the_tables(capsys):
    assert stopping_rules.main() == 0
    said = capsys.readouterr().out
    assert "0.0077" in said and "0.2088" in said and "3.174508" in said
