"""dp.datasets.divi_icu: the real table where present, and the conversion of the public originals."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pooch
import pytest

from dynapath.datasets import _divi_icu, _fetch, divi_icu
from dynapath.datasets._divi_icu import complete, convert_originals

DAYS = pd.date_range("2020-04-18", "2020-07-10", freq="D")


def made_up_originals():
    """Two counties and Eisenach: 01001 lacks a site on 10 May and its row on 12 May; 16077 has 2 patients each day."""
    rows, totals = [], []
    for county, patients in (("01001", 5), ("16077", 2), ("16056", 1)):
        for i, day in enumerate(DAYS):
            if county == "01001" and day == pd.Timestamp("2020-05-12"):
                continue
            dip = county == "01001" and day == pd.Timestamp("2020-05-10")
            rows.append((day, county, f"LK {county}", patients + i % 3, 2 - dip, 3 - dip))
        for i, day in enumerate(pd.date_range("2020-04-01", DAYS[-1])):
            total = 10 + 7 * i if day < pd.Timestamp("2020-06-01") else 3 + 7 * i  # corrected down on 1 June
            totals.append((day, county, total))
    names = [
        "datum",
        "landkreis_id",
        "landkreis_name",
        "faelle_covid_aktuell",
        "anzahl_standorte",
        "anzahl_meldebereiche",
    ]
    icu = pd.DataFrame(rows, columns=names)
    cases = pd.DataFrame(totals, columns=["Meldedatum", "Landkreis_id", "Faelle_gesamt"])
    return icu, cases


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The originals over HTTP on this machine; no data folder, and a cache of its own."""
    folder = tmp_path / "served"
    folder.mkdir()
    icu, cases = made_up_originals()
    icu.to_csv(folder / "icu.csv", index=False)
    cases.to_csv(folder / "cases.csv", index=False)
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.delenv("DYNAPATH_DATA", raising=False)
    monkeypatch.setattr(_fetch, "_folder_beside_checkout", lambda: None)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    for source, name in (("DIVI", "icu"), ("CASES", "cases")):
        url = f"http://127.0.0.1:{server.server_port}/{name}.csv"
        monkeypatch.setattr(_divi_icu, source, replace(getattr(_divi_icu, source), url=url))
    yield asked
    server.shutdown()
    server.server_close()
    thread.join()


def check_made_up(panel):
    assert list(panel.obs_names) == ["01001", "16077"]
    assert panel.shape == (2, 70)
    assert (panel.var_names[0], panel.var_names[-1]) == ("2020-04-25", "2020-07-03")
    missing = panel.var_names[np.isnan(panel.X).any(0)]
    assert list(missing) == ["2020-05-10", "2020-05-12"]
    assert not np.isnan(panel["16077"].X).any()
    # What was published stays readable; an absent row has nothing.
    assert panel["01001", "2020-05-10"].layers["as_published"] == 5 + 22 % 3
    assert np.isnan(panel["01001", "2020-05-12"].layers["as_published"])
    # 7 new cases a day; the correction on 1 June counts as 0 and lowers the mean of a week.
    new, mean = panel.to_df("cases_new").loc["16077"], panel.to_df("cases_7d_mean").loc["16077"]
    assert new["2020-05-31"] == mean["2020-05-31"] == 7
    assert new["2020-06-01"] == 0
    assert mean["2020-06-01"] == mean["2020-06-07"] == 6
    assert mean["2020-06-08"] == 7
    assert list(panel.obs["max_sites"]) == [2, 2]
    assert list(panel.obs["name"]) == ["LK 01001", "LK 16077"]


def test_the_originals_are_downloaded_once_and_converted(served):
    check_made_up(divi_icu("spring2020"))
    check_made_up(divi_icu("spring2020"))
    assert len(served) == 2


def test_the_originals_may_lie_in_a_folder_under_their_own_names(served, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    icu, cases = made_up_originals()
    icu.to_csv(folder / "icu.csv", index=False)  # the name in the made-up address
    cases.to_csv(folder / "COVID-19-Faelle_7-Tage-Inzidenz_Landkreise.csv", index=False)
    check_made_up(divi_icu("spring2020", path=folder))
    assert served == []


def test_a_window_without_reports_and_a_strange_file_are_refused(served, tmp_path):
    with pytest.raises(ValueError, match="no rows of the window 'winter2021'"):
        divi_icu("winter2021")
    file = tmp_path / "other.csv"
    pd.DataFrame({"a": [1]}).to_csv(file)
    with pytest.raises(ValueError, match="no column 'county_ags'.*CC BY 4.0"):
        divi_icu(path=file)
    icu, cases = made_up_originals()
    with pytest.raises(ValueError, match="no column 'Faelle_gesamt'"):
        convert_originals(icu, cases.rename(columns={"Faelle_gesamt": "n"}))


def test_an_unknown_window_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="'spring2020', 'autumn2020', 'winter2021'; it is 'summer'"):
        divi_icu("summer")


def test_a_failed_download_names_source_and_licence(served, monkeypatch):
    monkeypatch.setattr(_divi_icu, "DIVI", replace(_divi_icu.DIVI, url=_divi_icu.DIVI.url + ".gone"))
    with pytest.raises(FileNotFoundError, match=r"DYNAPATH_DATA.*DIVI-Intensivregister.*CC BY 4.0"):
        divi_icu()


def test_a_report_is_incomplete_only_below_both_sides():
    n = pd.DataFrame({"dip": [2, 2, 1, 2, 2], "closed": [2, 2, 1, 1, 1], "opened": [1, 1, 2, 2, 2]}, dtype=float)
    expected = {"dip": [True, True, False, True, True], "closed": [True] * 5, "opened": [True] * 5}
    pd.testing.assert_frame_equal(complete(n), pd.DataFrame(expected))
    n.loc[1, "dip"] = np.nan
    assert not complete(n).loc[1, "dip"]


# --- the real data -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(data_dir):
    return _divi_icu._read(data_dir / "icu" / "divi_county_daily.csv.gz")


@pytest.mark.parametrize(
    ("window", "missing", "last_day"),
    [("spring2020", 0.046, 389), ("autumn2020", 0.007, 396), ("winter2021", 0.002, 394)],
)
def test_the_windows_have_their_known_gaps(data_dir, window, missing, last_day):
    panel = divi_icu(window, path=data_dir)
    assert panel.shape == (396, 70)
    assert round(np.isnan(panel.X).mean(), 3) == missing
    assert (~np.isnan(panel.X[:, -1])).sum() == last_day
    assert "01001" in panel.obs_names
    assert set(panel.layers) - {None} == {"cases_7d_mean", "cases_new", "as_published"}
    assert not np.isnan(panel.layers["cases_7d_mean"]).any()


def test_in_spring_96_counties_are_one_hospital(data_dir):
    assert (divi_icu("spring2020", path=data_dir).obs["max_sites"] == 1).sum() == 96


def test_the_rule_for_incomplete_reports_gives_the_flag_of_the_table(table):
    """Seven days from the edges, where the table itself has what the rule needs."""
    for _, window in table.groupby("window"):
        sites, areas, flag = (
            window.pivot(index="date", columns="county_ags", values=name) for name in ("n_sites", "n_areas", "reported")
        )
        assert ((complete(sites) & complete(areas)) == flag).iloc[7:-7].all(axis=None)
