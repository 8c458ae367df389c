"""Times as users write them: what is read, what is refused, and that the line of a refusal leads to the right dates."""

from __future__ import annotations

import re
from decimal import Decimal

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import dynapath as dp
from dynapath._time_column import Place, read_times
from dynapath.read.counts import read_times as read_cell_times
from dynapath.read.panel import day_index, read_dates, read_panel
from dynapath.read.visits import read_visits

LONG = {"subject": "patient", "time": "date", "item": "test", "value": "score"}
VISITS = {"subject_key": "patient", "time_key": "date"}
HERE = Place.in_table("date")
EARLY = ["03.03.2020", "04.03.2020", "05.03.2020"]  # no day above 12
DAYS = pd.Series(pd.date_range("2020-03-10", "2020-04-12"))


def dates_of(values) -> pd.Series:
    read = read_times(pd.Series(values), HERE)
    assert read.kind == "dates"
    return read.values


def long_table(dates) -> pd.DataFrame:
    table = {"patient": ["a"] * len(dates), "date": list(dates), "test": "x", "score": np.arange(len(dates)) ** 0.5}
    return pd.DataFrame(table)


def visits_at(dates) -> ad.AnnData:
    obs = pd.DataFrame({"patient": "a", "date": list(dates)}, index=[f"v{i}" for i in range(len(dates))])
    return ad.AnnData(np.arange(float(len(dates)))[:, None] ** 0.5, obs=obs, var=pd.DataFrame(index=["x"]))


def panel_of(names, **var) -> ad.AnnData:
    names = list(names)
    return ad.AnnData(np.ones((1, len(names))), var=pd.DataFrame(var, index=names))


def elapsed(adata, unit="day") -> np.ndarray:
    return read_visits(adata, **VISITS, time_unit=unit).visits.times[0]


# --- numbers -----------------------------------------------------------------------------------------------------------

HELD = {
    "integers": lambda x: x.astype(int),
    "text": lambda x: x.astype(str),
    "text with blanks": lambda x: " " + x.astype(int).astype(str),
    "text of pandas": lambda x: x.astype(str).astype("string"),
    "categories": lambda x: x.astype("category"),
    "categories of integers": lambda x: x.astype(int).astype("category"),
    "categories of text": lambda x: x.astype(str).astype("category"),
    "objects": lambda x: x.astype(object),
    "numbers and text": lambda x: pd.Series([0, "2", 10.0], dtype=object),
    "decimals": lambda x: x.map(str).map(Decimal),
    "nullable": lambda x: x.astype("Int64"),
}


@pytest.mark.parametrize("held", HELD)
def test_a_number_is_the_same_time_however_it_is_held(held):
    numbers = pd.Series([0.0, 2.0, 10.0])
    times = HELD[held](numbers).tolist() if held in ("objects", "numbers and text", "decimals") else HELD[held](numbers)
    column = pd.Series(times)
    adata = visits_at(column)
    adata.obs["date"] = column.set_axis(adata.obs_names)
    made = dp.pp.visits_from_long(long_table(column).assign(date=column), **LONG)
    assert list(made.obs["date"]) == [0, 2, 10]
    np.testing.assert_array_equal(read_visits(adata, **VISITS).visits.times, [[0, 2, 10]])
    np.testing.assert_array_equal(read_cell_times(adata, "date"), [0, 2, 10])
    with pytest.raises(TypeError, match="holds numbers such as .*pd.to_timedelta"):
        dp.pp.panel_from_long(long_table(column).assign(date=column), unit="patient", time="date", value="score")


def test_the_scvi_model_reads_times_as_its_face_does():
    from dynapath.models._time_field import measured_times

    np.testing.assert_array_equal(measured_times(visits_at(["0", "2", "10"]), "date"), [0, 2, 10])
    with pytest.raises(ValueError, match="holds dates such as '2020-03-04'"):
        measured_times(visits_at(["2020-03-04", "2020-03-05"]), "date")


def test_numbered_days_of_panels_are_numbers():
    for names in (["0", "1", "2"], ["2020", "2021", "2022"]):
        assert read_dates(panel_of(names)) is None
        assert dp.get.long(panel_of(names))["date"].tolist() == names


def test_whole_numbers_that_are_calendar_dates_are_dates():
    expected = pd.to_datetime(["2020-04-30", "2020-05-01"]).tolist()
    for held in ([20200430, 20200501], [20200430.0, 20200501.0], ["20200430", "20200501"]):
        assert dates_of(held).tolist() == expected
        assert elapsed(visits_at(held)).tolist() == [0, 1]
        with pytest.raises(ValueError, match="holds dates such as '20200430") as refused:
            read_cell_times(visits_at(held), "date")
        adata = visits_at(held)
        exec(re.search(r"days: (.*)\.$", str(refused.value))[1], {"pd": pd, "adata": adata})
        assert adata.obs["date"].tolist() == [0, 1]
    assert read_times(pd.Series([20200430, 20200500]), HERE).kind == "numbers"


def test_numbers_among_dates_are_refused():
    with pytest.raises(ValueError, match="has numbers such as '2020' among dates such as '2020-03-04'"):
        dates_of(["2020-03-04", "2020"])


@pytest.mark.parametrize("values", [[True, False], [1j, 2j]])
def test_what_is_no_time_is_refused_everywhere(values):
    for read in (lambda a: read_visits(a, **VISITS), lambda a: read_cell_times(a, "date")):
        with pytest.raises(ValueError, match="which is no time"):
            read(visits_at(values))


# --- dates -------------------------------------------------------------------------------------------------------------

FORMATS = [
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y.%m.%d",
    "%Y %m %d",
    "%Y%m%d",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d %I:%M %p",
    "%Y%m%dT%H%M%S",
    "%d.%m.%Y",
    "%m/%d/%Y",
    "%d-%m-%Y",
    "%d/%m/%Y %H:%M:%S",
    "%m/%d/%Y %I:%M %p",
    "%d. %m. %Y",
    "%d %b %Y",
    "%d%b%Y",
    "%d-%b-%Y",
    "%B %d, %Y",
    "%a, %d %b %Y %H:%M:%S",
    "%Y-%b-%d",
]


@pytest.mark.parametrize("written", FORMATS)
def test_dates_whose_format_leaves_no_choice_are_read_in_any_order(written):
    times = DAYS + pd.Timedelta(minutes=875) if "%M" in written else DAYS
    shuffled = times.sample(frac=1, random_state=0)
    for given in (times, shuffled):
        text = given.dt.strftime(written)
        pd.testing.assert_series_equal(dates_of(text.reset_index(drop=True)), given.reset_index(drop=True))
        categories = pd.Series(pd.Categorical(text))
        pd.testing.assert_series_equal(dates_of(categories), given.reset_index(drop=True))


@pytest.mark.parametrize(
    "as_objects",
    [
        lambda d: d,
        lambda d: d.astype("datetime64[s]"),
        lambda d: d.dt.date,
        lambda d: d.astype(object),
        lambda d: d.dt.to_period("D"),
        lambda d: pd.Series(list(d.to_numpy()), dtype=object),
    ],
)
def test_dates_that_are_no_text_are_read(as_objects):
    assert (dates_of(as_objects(DAYS)).astype("datetime64[ns]") == DAYS).all()


def test_months_and_quarters_begin_with_their_first_day():
    first = pd.Timestamp("2020-04-01")
    for text in ("2020-04", "April 2020", "2020Q2", "2020-Q2"):
        assert dates_of([text]).tolist() == [first]


@pytest.mark.parametrize(
    "text", ["today", "now", "10:30", "Monday", "Mar 3", "visit 2", "2020-13-03", "31.02.2020", "13.13.2020"]
)
def test_what_is_no_date_or_depends_on_the_day_of_reading_is_refused(text):
    with pytest.raises(
        ValueError, match=f"has the value '{re.escape(text)}', which does not read as a number or a date"
    ):
        dates_of([text])


def follow(refused, **names) -> pd.Series:
    """Run the line that a refusal proposes for dates with the day first."""
    line = re.search(r"(\S+ = )?pd\.to_datetime\(.*?\)(\.astype\(str\))? if the day", str(refused.value))[0]
    line = line.removesuffix(" if the day")
    if "=" not in line.split("pd.")[0]:
        return eval(line, {"pd": pd})
    exec(line, {"pd": pd} | names)
    return None


def test_dates_that_can_be_read_in_two_ways_are_refused_in_long_tables():
    table = long_table(EARLY)
    with pytest.raises(ValueError, match="no day above 12 .*dayfirst=True.*dayfirst=False") as refused:
        dp.pp.visits_from_long(table, **LONG)
    follow(refused, df=table)
    assert elapsed(dp.pp.visits_from_long(table, **LONG)).tolist() == [0, 1, 2]
    table = long_table(EARLY)
    with pytest.raises(ValueError, match="no day above 12") as refused:
        dp.pp.panel_from_long(table, unit="patient", time="date", value="score")
    follow(refused, df=table)
    panel = dp.pp.panel_from_long(table, unit="patient", time="date", value="score")
    assert list(panel.var_names) == ["2020-03-03", "2020-03-04", "2020-03-05"]


def test_dates_that_can_be_read_in_two_ways_are_refused_in_obs(tmp_path):
    visits = visits_at(EARLY)
    with pytest.raises(ValueError, match="no day above 12") as refused:
        elapsed(visits)
    follow(refused, adata=visits)
    assert elapsed(visits).tolist() == [0, 1, 2]
    visits.write_h5ad(tmp_path / "visits.h5ad")
    assert elapsed(ad.read_h5ad(tmp_path / "visits.h5ad")).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="no day above 12"):
        read_cell_times(visits_at(EARLY), "date")


@pytest.mark.parametrize("where", ["var", "var_names"])
def test_dates_that_can_be_read_in_two_ways_are_refused_in_panels(where):
    panel = panel_of(EARLY) if where == "var_names" else panel_of("abc", date=EARLY)
    with pytest.raises(ValueError, match="no day above 12") as refused:
        read_panel(panel)
    follow(refused, adata=panel)
    assert read_panel(panel).dates.tolist() == pd.date_range("2020-03-03", periods=3).tolist()


def test_a_line_for_dates_of_several_forms_works_too():
    table = pd.DataFrame({"date": ["03.03.2020", "04.03.2020 10:00", "5/3/2020"]})
    with pytest.raises(ValueError, match="no day above 12") as refused:
        read_times(table["date"], HERE)
    follow(refused, df=table)
    expected = [pd.Timestamp(day) for day in ("2020-03-03", "2020-03-04 10:00", "2020-03-05")]
    assert read_times(table["date"], HERE).values.tolist() == expected


def test_a_year_of_two_digits_is_refused():
    table = pd.DataFrame({"date": ["13.03.20", "14.03.20"]})
    with pytest.raises(ValueError, match="'13.03.20', whose year has two digits.*yearfirst") as refused:
        read_times(table["date"], HERE)
    follow(refused, df=table)
    assert read_times(table["date"], HERE).values.tolist() == pd.to_datetime(["2020-03-13", "2020-03-14"]).tolist()


def test_days_first_and_months_first_in_one_column_are_refused():
    with pytest.raises(
        ValueError, match=r"'13\.03\.2020', with the day first, and '03\.13\.2020', with the month first"
    ):
        dates_of(["13.03.2020", "03.13.2020"])


@pytest.mark.parametrize("day", ["04.03.2020", "04/03/2020", "4.3.2020"])
def test_a_day_of_a_panel_that_can_be_read_in_two_ways_is_refused(day):
    adata = panel_of(DAYS.dt.strftime("%Y-%m-%d"))
    adata.X = np.arange(1.0, 1 + adata.n_vars)[None]
    for ask in (
        lambda day: read_panel(adata, train_until=day),
        lambda day: dp.stats.backtest(adata, models=["zero"], origins=day),
    ):
        with pytest.raises(ValueError, match="(train_until|origins) holds '.*no day above 12") as refused:
            ask(day)
        with pytest.raises(ValueError, match="is no day of the panel"):  # which begins on 10 March
            ask(follow(refused))
    assert read_panel(adata, train_until=pd.Timestamp("2020-04-03")).n_days == 25


def test_a_day_of_a_panel_can_be_given_in_any_clear_form():
    panel = read_panel(panel_of(DAYS.dt.strftime("%Y-%m-%d")))
    day = pd.Timestamp("2020-03-13")
    forms = ["2020-03-13", "13.03.2020", "03/13/2020", "13 Mar 2020", "20200313", day, day.date(), day.to_datetime64()]
    forms += [day.tz_localize("Europe/Berlin"), day.to_period("D")]
    assert {day_index(panel, form, "train_until") for form in forms} == {3}
    named = read_panel(panel_of(["10.03.2020", "11.03.2020"], date=["2020-03-10", "2020-03-11"]))
    assert day_index(named, "11.03.2020", "train_until") == 1  # a name is a name


# --- time zones --------------------------------------------------------------------------------------------------------

MIDNIGHTS = pd.Series(pd.date_range("2020-03-28", periods=4, tz="Europe/Berlin"))  # summer time begins on the 29th
HOURS = pd.Series(pd.date_range("2020-03-28 23:00", periods=6, freq="h", tz="Europe/Berlin"))
ZONED = [
    lambda d: d,
    lambda d: d.map(pd.Timestamp.isoformat),
    lambda d: d.astype(object),
    lambda d: d.astype(str).astype("category"),
]


@pytest.mark.parametrize("form", ZONED)
def test_days_and_hours_across_a_change_to_summer_time_are_as_long_as_they_are(form, tmp_path):
    for times, unit in ((MIDNIGHTS, "day"), (HOURS, "hour")):
        expected = np.arange(len(times))
        visits = dp.pp.visits_from_long(long_table(times).assign(date=form(times)), **LONG)
        visits.write_h5ad(tmp_path / f"{unit}.h5ad")
        for adata in (visits, ad.read_h5ad(tmp_path / f"{unit}.h5ad"), visits_at(form(times))):
            np.testing.assert_allclose(elapsed(adata, unit), expected)
        assert pd.to_datetime(visits.obs["date"]).dtype.kind == "M"  # one time zone, or none


@pytest.mark.parametrize("form", ZONED)
def test_the_line_for_panels_of_local_days_leads_to_these_days(form):
    table = long_table(MIDNIGHTS).assign(date=form(MIDNIGHTS))
    with pytest.raises(ValueError, match="time zone") as refused:
        dp.pp.panel_from_long(table, unit="patient", time="date", value="score")
    exec(re.search(r"df\['date'\] = .*\)(?=\.$)", str(refused.value))[0], {"pd": pd, "df": table})
    panel = dp.pp.panel_from_long(table, unit="patient", time="date", value="score")
    assert list(panel.var_names) == ["2020-03-28", "2020-03-29", "2020-03-30", "2020-03-31"]


def test_dates_with_and_without_a_time_zone_are_refused():
    with pytest.raises(ValueError, match=r"with a time zone, such as '.*\+01:00', and without, such as"):
        dates_of(["2020-03-04T10:00+01:00", "2020-03-04T10:00"])


# --- durations ---------------------------------------------------------------------------------------------------------


def test_durations_are_counted_and_survive_a_table(tmp_path):
    since = pd.Series(pd.to_timedelta([0, 36, 96], unit="h"))
    visits = dp.pp.visits_from_long(long_table(since).assign(date=since), **LONG)
    visits.write_h5ad(tmp_path / "visits.h5ad")
    for adata in (visits, ad.read_h5ad(tmp_path / "visits.h5ad"), visits_at(since)):
        assert elapsed(adata).tolist() == [0, 1.5, 4]
    with pytest.raises(ValueError, match="holds durations such as") as refused:
        read_cell_times(visits, "date")
    exec(re.search(r"days: (.*)\.$", str(refused.value))[1], {"pd": pd, "adata": visits})
    np.testing.assert_array_equal(read_cell_times(visits, "date"), [0, 1.5, 4])


# --- elsewhere ---------------------------------------------------------------------------------------------------------


def test_times_of_ehrdata_are_dates_where_they_are_dates():
    from types import SimpleNamespace

    obs, var = pd.DataFrame(index=["a"]), pd.DataFrame(index=["x"])
    tem = pd.DataFrame({"time": DAYS[:2]})
    shape = {"obs": obs, "var": var, "n_obs": 1, "n_vars": 1, "obs_names": obs.index, "X": None}
    edata = SimpleNamespace(**shape, tem=tem, layers={"tem_data": np.ones((1, 1, 2))})
    assert list(dp.pp.from_ehrdata(edata).obs["time"]) == ["2020-03-10T00:00:00", "2020-03-11T00:00:00"]
    edata.tem = pd.DataFrame({"time": EARLY[:2]})
    with pytest.raises(ValueError, match="no day above 12") as refused:
        dp.pp.from_ehrdata(edata)
    follow(refused, edata=edata)
    assert list(dp.pp.from_ehrdata(edata).obs["time"]) == ["2020-03-03T00:00:00", "2020-03-04T00:00:00"]


def test_fits_of_dates_are_drawn_by_the_time_that_passed():
    registry = dp.datasets.simulate_registry("linear2", n_subjects=12)
    days = pd.Timestamp("2020-01-01") + pd.to_timedelta((registry.obs["time"] * 400).round(), unit="D")
    registry.obs["time"] = days.dt.strftime("%d.%m.%Y")
    keys = {"subject_key": "patient", "time_key": "time", "time_unit": "day"}
    schedule = dp.stats.Schedule(n_epochs=2)
    dp.stats.fit_latent_dynamics(registry, **keys, schedule=schedule, n_restarts=1)
    passed = (days - days.groupby(registry.obs["patient"], observed=True).transform("min")).dt.days
    (ax,) = dp.pl.latent_trajectories(registry, key="latent_dynamics", dims=[1], show=False)
    drawn = np.concatenate([points.get_offsets()[:, 0] for points in ax.collections[1:]])
    np.testing.assert_allclose(np.sort(drawn), np.sort(passed))
    # Where a subject's own days are all early in their months, those of the others say how to read them.
    who = registry.obs["patient"].iloc[0]
    (ax,) = dp.pl.subject_fit(registry, who, items=registry.var_names[0], show=False)
    drawn = np.concatenate([points.get_offsets()[:, 0] for points in ax.collections[1:]])
    np.testing.assert_allclose(np.sort(drawn), np.sort(passed[registry.obs["patient"] == who]))


def test_figures_of_panels_have_the_days_that_were_meant():
    from dynapath.pl._days import day_axis

    days = pd.date_range("2020-03-10", periods=5)
    for written in ("%d.%m.%Y", "%Y%m%d", "%Y-%m-%dT00:00:00+01:00"):
        np.testing.assert_array_equal(day_axis(panel_of(days.strftime(written))), days.to_numpy())
    assert (
        day_axis(panel_of(["5", "6", "7"])).tolist() == day_axis(panel_of(["mon", "tue", "wed"])).tolist() == [0, 1, 2]
    )
    with pytest.raises(ValueError, match="var_names holds '03.03.2020', with no day above 12"):
        day_axis(panel_of(EARLY))
