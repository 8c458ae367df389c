"""COVID-19 patients in intensive care in German counties, day by day, with the days on which reports were incomplete."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
from anndata import AnnData

from dynapath.datasets._fetch import Source, find
from dynapath.pp import panel_from_long

DIVI = Source(
    name="DIVI county reports, three windows of 70 days",
    filename="divi_county_daily.csv.gz",
    folder="icu",
    url="https://raw.githubusercontent.com/robert-koch-institut/Intensivkapazitaeten_und_COVID-19-Intensivbettenbelegung_"
    "in_Deutschland/11a3f425aa72b4a124049b6709bafee8c2831037/Intensivregister_Landkreise_Kapazitaeten.csv",
    origin="DIVI-Intensivregister / Robert Koch-Institut, doi:10.5281/zenodo.7125598",
    licence="CC BY 4.0",
    shape=(83160, 9),
)
CASES = Source(
    name="COVID-19 cases by county and day",
    filename="COVID-19-Faelle_7-Tage-Inzidenz_Landkreise.csv",
    folder="icu",
    url="https://raw.githubusercontent.com/robert-koch-institut/COVID-19_7-Tage-Inzidenz_in_Deutschland/"
    "1a48ddba41d45e56387fc25f149b76f08331ecb0/COVID-19-Faelle_7-Tage-Inzidenz_Landkreise.csv",
    origin="Robert Koch-Institut, SurvStat, doi:10.5281/zenodo.7129007",
    licence="CC BY 4.0",
    shape=(0, 7),
)
WINDOWS = {
    "spring2020": ("2020-04-25", "2020-07-03"),
    "autumn2020": ("2020-09-01", "2020-11-09"),
    "winter2021": ("2021-02-01", "2021-04-11"),
}
COLUMNS = ("county_ags", "date", "icu_covid", "n_sites", "n_areas", "reported", "cases_new", "cases_7d_mean", "window")
EISENACH = "16056"  # merged into the county around it in the case series


def divi_icu(window: str = "spring2020", *, path: str | os.PathLike[str] | None = None) -> AnnData:
    """COVID-19 patients in intensive care: 396 German counties on 70 days, with genuine gaps in reporting.

    Parameters
    ----------
    window
        `"spring2020"` (25 April to 3 July 2020; 4.6 % of the reports missing), `"autumn2020"` (1 September to 9 November
        2020; .7 %) or `"winter2021"` (1 February to 11 April 2021; .2 %). From August 2020 on the register itself
        carries reports forward, so that gaps become rare.
    path
        The table, or a folder that holds `divi_county_daily.csv.gz` (or the same in `icu/`), or that holds the two
        public originals. By default the folder named by the environment variable DYNAPATH_DATA, then a `shared/data`
        folder beside the checkout, then a download of the originals (some hundred megabytes), kept in the user's cache.

    Returns
    -------
    AnnData with

    - `X` (county, day) float64, patients in intensive care; NaN where the county's report is missing or incomplete.
    - `obs_names` official county keys as text, with leading zeros; 11000 is the whole of Berlin.
    - `layers["cases_7d_mean"]` mean number of newly notified cases over the seven days up to that day, the covariate.
    - `layers["cases_new"]` newly notified cases of the day, negative corrections set to 0.
    - `layers["as_published"]` the published number, also where the report was incomplete.
    - `obs["max_sites"]` the largest number of hospital sites in a report of the window: 1 is a county with one hospital.
      `obs["state"]` the first two digits of the key, `obs["name"]` where the file has it.
    - `var["date"]`, `var_names` ISO dates; `uns["panel"]` as of :func:`dynapath.pp.panel_from_long`.

    Raises
    ------
    FileNotFoundError
        If the file is nowhere and cannot be downloaded; the message names source, licence and what to do.
    ValueError
        For another window, or a file that is not the expected one.

    Notes
    -----
    A report is called incomplete when the number of hospital sites or of reporting areas in it is below both its maximum
    of the seven days before and that of the seven days after: then some site is missing from the county's sum. This is
    judged in retrospect, from the table, and not by the register.

    The unit is the county, not the hospital, except where `max_sites` is 1. Source of the reports is the
    DIVI-Intensivregister, published by the Robert Koch-Institut [1]_, of the cases the Robert Koch-Institut [2]_, both
    under CC BY 4.0. The table in a data folder was put together from daily copies of the same reports as they appeared;
    the download has later corrections, so that some numbers differ.

    The addresses of the download name one version of each repository, whose descriptions state the files, their columns
    and the licence. What has not been checked is the content of the files: conversion and download are tested with small
    files of the same form, and the numbers they give were not compared with those of the table. Each version of the data
    has a DOI of its own (`citation.cff` in the repositories); please cite that of the version you use.

    References
    ----------
    .. [1] Robert Koch-Institut. Intensivkapazitaeten und COVID-19-Intensivbettenbelegung in Deutschland.
       doi:10.5281/zenodo.7125598
    .. [2] Robert Koch-Institut. 7-Tage-Inzidenz der COVID-19-Faelle in Deutschland. doi:10.5281/zenodo.7129007

    Examples
    --------
    >>> import dynapath as dp
    >>> counties = dp.datasets.divi_icu("spring2020")  # doctest: +SKIP
    >>> counties.shape  # doctest: +SKIP
    (396, 70)
    """
    if window not in WINDOWS:
        msg = f"window must be one of {', '.join(map(repr, WINDOWS))}; it is {window!r}."
        raise ValueError(msg)
    file = find(DIVI, _original_in(path) or path)
    table = _read(file)
    if "landkreis_id" in table:
        folder = path if path is not None and Path(path).is_dir() else None
        cases = _read(find(CASES, folder))
        table = convert_originals(table, cases)
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        msg = f"{file} has no column {missing[0]!r}; it has {', '.join(map(str, table.columns))}. Expected: {DIVI}"
        raise ValueError(msg)
    table = table[table["window"] == window]
    if table.empty:
        msg = f"{file} has no rows of the window {window!r}. Expected: {DIVI}"
        raise ValueError(msg)
    panel = panel_from_long(
        table.assign(as_published=table["icu_covid"], county=table["county_ags"]),
        unit="county",
        time="date",
        value="icu_covid",
        covariates=["cases_7d_mean", "cases_new", "as_published"],
        observed="reported",
    )
    sites = table.groupby("county_ags")["n_sites"].max()
    panel.obs["max_sites"] = sites.reindex(panel.obs_names).to_numpy()
    panel.obs["state"] = [key[:2] for key in panel.obs_names]
    if (names := _names(table, file)) is not None:
        panel.obs["name"] = names.reindex(panel.obs_names).to_numpy()
    panel.uns["window"] = window
    return panel


def convert_originals(icu: pd.DataFrame, cases: pd.DataFrame) -> pd.DataFrame:
    """The table of three windows from the Robert Koch-Institut's county series of reports and of cases.

    Raises
    ------
    ValueError : if a column is missing.
    """
    _require(icu, DIVI, "datum", "landkreis_id", "faelle_covid_aktuell", "anzahl_standorte", "anzahl_meldebereiche")
    _require(cases, CASES, "Meldedatum", "Landkreis_id", "Faelle_gesamt")
    wide = {
        name: icu.assign(datum=pd.to_datetime(icu["datum"])).pivot(index="datum", columns="landkreis_id", values=column)
        for name, column in (
            ("icu_covid", "faelle_covid_aktuell"),
            ("n_sites", "anzahl_standorte"),
            ("n_areas", "anzahl_meldebereiche"),
        )
    }
    days = pd.date_range(wide["n_sites"].index.min(), wide["n_sites"].index.max(), freq="D")
    wide = {name: series.reindex(days).astype(float) for name, series in wide.items()}
    reported = complete(wide["n_sites"]) & complete(wide["n_areas"]) & wide["icu_covid"].notna()
    total = cases.assign(Meldedatum=pd.to_datetime(cases["Meldedatum"])).pivot(
        index="Meldedatum", columns="Landkreis_id", values="Faelle_gesamt"
    )
    total = total.reindex(pd.date_range(total.index.min(), max(total.index.max(), days[-1]), freq="D")).ffill()
    new = total.diff().clip(lower=0)
    mean = new.rolling(7).mean()

    counties = [key for key in wide["n_sites"] if key in total and key != EISENACH]
    parts = []
    for window, (first, last) in WINDOWS.items():
        inside = pd.date_range(first, last, freq="D")
        series = {**wide, "reported": reported, "cases_new": new, "cases_7d_mean": mean}
        stacked = {
            name: values.reindex(index=inside, columns=counties).stack(future_stack=True)
            for name, values in series.items()
        }
        part = pd.DataFrame(stacked).rename_axis(["date", "county_ags"]).reset_index()
        part["reported"] = part["reported"].astype("boolean").fillna(value=False).astype(bool)
        parts.append(part.assign(window=window))
    table = pd.concat(parts, ignore_index=True)
    # A county that never reports in a window is not part of it.
    known = table.groupby(["window", "county_ags"])["reported"].transform("any")
    if "landkreis_name" in icu:
        table["name"] = table["county_ags"].map(
            icu.drop_duplicates("landkreis_id").set_index("landkreis_id")["landkreis_name"]
        )
    return table[known].reset_index(drop=True)


def complete(n: pd.DataFrame) -> pd.DataFrame:
    """Whether a number of sites (day, county) is below neither its last nor its next seven days' maximum, or only one."""
    before = n.shift(1).rolling(7, min_periods=1).max()
    after = n[::-1].shift(1).rolling(7, min_periods=1).max()[::-1]
    return n.notna() & ~((n < before) & (n < after))


def _original_in(path: str | os.PathLike[str] | None) -> Path | None:
    """The original's reports in a folder that holds them under their own name."""
    if path is None or not Path(path).is_dir():
        return None
    own_name = DIVI.url.rsplit("/", 1)[-1]
    candidates = [Path(path) / own_name, Path(path) / DIVI.folder / own_name]
    converted = [Path(path) / DIVI.filename, Path(path) / DIVI.folder / DIVI.filename]
    if any(file.is_file() for file in converted):
        return None
    return next((file for file in candidates if file.is_file()), None)


def _read(file: Path) -> pd.DataFrame:
    """A csv file, compressed or not whatever its name; keys stay text."""
    with file.open("rb") as opened:
        compressed = opened.read(2) == b"\x1f\x8b"
    keys = dict.fromkeys(("county_ags", "landkreis_id", "Landkreis_id"), str)
    return pd.read_csv(file, dtype=keys, compression="gzip" if compressed else None)


def _names(table: pd.DataFrame, file: Path) -> pd.Series | None:
    """Names of the counties: a column, or `counties.csv` beside the file."""
    if "name" in table:
        return table.drop_duplicates("county_ags").set_index("county_ags")["name"]
    beside = file.with_name("counties.csv")
    if not beside.is_file():
        return None
    return pd.read_csv(beside, dtype=str).set_index("county_ags")["name"]


def _require(table: pd.DataFrame, source: Source, *columns: str) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        msg = f"The file has no column {missing[0]!r}; it has {', '.join(map(str, table.columns))}. Expected: {source}"
        raise ValueError(msg)
