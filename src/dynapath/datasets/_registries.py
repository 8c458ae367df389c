"""Public clinical registries as AnnData, one row per visit: pbc2 (liver), paquid (cognition), aids (CD4 cells)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from dynapath.datasets._fetch import ENVIRONMENT_VARIABLE, _candidates, _default_folders, _first_file
from dynapath.datasets._fetch import Source as File

Transform = Callable[[pd.Series], pd.Series]


@dataclass(frozen=True)
class Registry:
    """A registry: its two tables, the items that are analysed with their transformations, and what is an outcome."""

    visits: File
    subjects: File
    items: Mapping[str, tuple[str, Transform]]  # item -> (name of the transformation, transformation)
    baseline: tuple[str, ...]
    outcomes: tuple[str, ...]
    time_unit: str
    export: str  # R code


def _identity(values: pd.Series) -> pd.Series:
    return values


def _ceiling(values: pd.Series) -> pd.Series:
    """-log(31 - MMSE): the test has a ceiling at 30, near which a point means more."""
    return -np.log(31.0 - values)


def _files(name: str, n_visits: int, n_subjects: int, origin: str, licence: str) -> tuple[File, File]:
    return tuple(
        File(
            name=f"{name}, one row per {row}",
            filename=f"{name}_{table}.csv",
            folder="longitudinal",
            url="none as CSV; the R package named holds it",
            origin=origin,
            licence=licence,
            shape=(n, 0),
        )
        for table, row, n in (("visits", "visit", n_visits), ("baseline", "patient", n_subjects))
    )


_LOG, _SQRT, _AS_IT_IS = ("log", np.log), ("sqrt", np.sqrt), ("identity", _identity)
PBC2 = Registry(
    *_files(
        "pbc2",
        1945,
        312,
        "Mayo Clinic trial in primary biliary cirrhosis, Murtaugh et al. 1994, data set pbc2 of the R package JM",
        "GPL (>= 2) of the R package JM",
    ),
    items={
        "serBilir": _LOG,
        "albumin": _AS_IT_IS,
        "alkaline": _LOG,
        "SGOT": _LOG,
        "platelets": _SQRT,
        "prothrombin": _LOG,
    },
    baseline=("age_entry", "female", "drug_dpca"),
    outcomes=("followup_years", "end_status", "death"),
    time_unit="year",
    export="d <- JM::pbc2; v <- data.frame(patient=d$id, time=d$year, d[c('serBilir','albumin','alkaline','SGOT',"
    "'platelets','prothrombin')]); b <- with(d[!duplicated(d$id),], data.frame(patient=id, age_entry=age, "
    "female=as.integer(sex=='female'), drug_dpca=as.integer(drug=='D-penicil'), followup_years=years, "
    "end_status=status, death=status2))",
)
PAQUID = Registry(
    *_files(
        "paquid",
        2250,
        500,
        "PAQUID cohort of cognitive ageing, Letenneur et al. 1994, data set paquid of the R package lcmm",
        "GPL (>= 2) of the R package lcmm",
    ),
    items={"MMSE": ("-log(31 - MMSE)", _ceiling), "BVRT": _AS_IT_IS, "IST": _AS_IT_IS, "CESD": _SQRT},
    baseline=("age_entry", "primary_school", "male"),
    outcomes=("dementia", "age_dementia_or_last"),
    time_unit="year",
    export="d <- lcmm::paquid; v <- data.frame(patient=d$ID, time=d$age-d$age_init, d[c('MMSE','BVRT','IST','CESD')]); "
    "b <- with(d[!duplicated(d$ID),], data.frame(patient=ID, age_entry=age_init, primary_school=CEP, male=male, "
    "dementia=dem, age_dementia_or_last=agedem))",
)
AIDS = Registry(
    *_files(
        "aids",
        1405,
        467,
        "ddI/ddC trial, Goldman et al. 1996, data set aids of the R package JM",
        "GPL (>= 2) of the R package JM",
    ),
    items={"CD4": _AS_IT_IS},
    baseline=("drug_ddI", "male", "prevOI_aids", "azt_failure"),
    outcomes=("followup_months", "death"),
    time_unit="month",
    export="d <- JM::aids; v <- data.frame(patient=d$patient, time=d$obstime, CD4=d$CD4); b <- "
    "with(d[!duplicated(d$patient),], data.frame(patient=patient, drug_ddI=as.integer(drug=='ddI'), "
    "male=as.integer(gender=='male'), prevOI_aids=as.integer(prevOI=='AIDS'), "
    "azt_failure=as.integer(AZT=='failure'), followup_months=Time, death=death))",
)


def pbc2(*, path: str | os.PathLike[str] | None = None) -> AnnData:
    """Primary biliary cirrhosis: 312 patients, 1,945 visits, six laboratory items.

    Parameters
    ----------
    path
        Folder that holds `pbc2_visits.csv` and `pbc2_baseline.csv` (or the same in `longitudinal/`). By default the folder
        named by the environment variable DYNAPATH_DATA, then a `shared/data` folder beside the checkout.

    Returns
    -------
    AnnData with one row per visit and

    - `X` (visit, item) float64, NaN = not measured: log bilirubin, albumin, log alkaline phosphatase, log SGOT (AST), square
      root of platelets, log prothrombin time. `layers["raw"]` as measured; `var["transform"]` says what was done.
    - `obs["patient"]`, `obs["time"]` years since entry; baseline `age_entry`, `female`, `drug_dpca`.
    - `obs["outcome_followup_years"]`, `obs["outcome_end_status"]`, `obs["outcome_death"]`: known only afterwards, and never
      to be used as baseline variables.

    Raises
    ------
    FileNotFoundError
        If the tables are nowhere; the message names source, licence and how to export them from R.
    ValueError
        If they are not the expected ones.

    Notes
    -----
    Visits end with death or transplantation, so that what is seen late is seen of those who live.

    References
    ----------
    P. A. Murtaugh et al. Primary biliary cirrhosis: prediction of short-term survival based on repeated patient
    visits. Hepatology 20:126-134, 1994. doi:10.1002/hep.1840200120

    Examples
    --------
    >>> import dynapath as dp
    >>> visits = dp.datasets.pbc2()  # doctest: +SKIP
    """
    return _read(PBC2, path)


def paquid(*, path: str | os.PathLike[str] | None = None) -> AnnData:
    """Cognitive ageing: 500 persons, 2,250 visits, three tests of cognition and a depression scale.

    Parameters
    ----------
    path
        Folder that holds `paquid_visits.csv` and `paquid_baseline.csv` (or the same in `longitudinal/`). By default as for
        :func:`dynapath.datasets.pbc2`.

    Returns
    -------
    AnnData with one row per visit and

    - `X` (visit, item) float64, NaN = not measured: MMSE as -log(31 - MMSE), since it has a ceiling at 30, BVRT, IST, square
      root of CESD. `layers["raw"]` as measured; `var["transform"]` says what was done.
    - `obs["patient"]`, `obs["time"]` years since entry; baseline `age_entry`, `primary_school`, `male`.
    - `obs["outcome_dementia"]`, `obs["outcome_age_dementia_or_last"]`: known only afterwards.

    Raises
    ------
    FileNotFoundError
        If the tables are nowhere; the message names source, licence and how to export them from R.
    ValueError
        If they are not the expected ones.

    References
    ----------
    L. Letenneur et al. Incidence of dementia and Alzheimer's disease in elderly community residents of south-western
    France. International Journal of Epidemiology 23:1256-1261, 1994. doi:10.1093/ije/23.6.1256

    Examples
    --------
    >>> import dynapath as dp
    >>> visits = dp.datasets.paquid()  # doctest: +SKIP
    """
    return _read(PAQUID, path)


def aids(*, path: str | os.PathLike[str] | None = None) -> AnnData:
    """CD4 cells in a trial of two drugs: 467 patients, 1,405 visits at planned times.

    Parameters
    ----------
    path
        Folder that holds `aids_visits.csv` and `aids_baseline.csv` (or the same in `longitudinal/`). By default as for
        :func:`dynapath.datasets.pbc2`.

    Returns
    -------
    AnnData with one row per visit and

    - `X` (visit, 1) float64, the square root of the CD4 count, as distributed; `layers["raw"]` the same.
    - `obs["patient"]`, `obs["time"]` months since entry; baseline `drug_ddI`, `male`, `prevOI_aids`, `azt_failure`.
    - `obs["outcome_followup_months"]`, `obs["outcome_death"]`: known only afterwards.

    Raises
    ------
    FileNotFoundError
        If the tables are nowhere; the message names source, licence and how to export them from R.
    ValueError
        If they are not the expected ones.

    References
    ----------
    A. I. Goldman et al. Response of CD4 lymphocytes and clinical consequences of treatment using ddI or ddC in
    patients with advanced HIV infection. Journal of Acquired Immune Deficiency Syndromes 11:161-169, 1996.

    Examples
    --------
    >>> import dynapath as dp
    >>> visits = dp.datasets.aids()  # doctest: +SKIP
    """
    return _read(AIDS, path)


def _read(registry: Registry, path: str | os.PathLike[str] | None) -> AnnData:
    visits = pd.read_csv(_find(registry, registry.visits, path), dtype={"patient": str})
    subjects = pd.read_csv(_find(registry, registry.subjects, path), dtype={"patient": str})
    _check(registry.visits, visits, ("patient", "time", *registry.items))
    _check(registry.subjects, subjects, ("patient", *registry.baseline, *registry.outcomes))
    row_of = subjects.set_index("patient")
    unknown = visits.loc[~visits["patient"].isin(row_of.index), "patient"]
    if len(unknown):
        msg = f"{registry.subjects.filename} has no patient {unknown.iloc[0]!r}, who has visits. {registry.subjects}"
        raise ValueError(msg)
    rows = row_of.loc[visits["patient"]].reset_index(drop=True)
    obs = pd.DataFrame({"patient": pd.Categorical(visits["patient"], categories=row_of.index)})
    obs["time"] = visits["time"].astype(float)
    for name in registry.baseline:
        obs[name] = rows[name].astype(float)
    for name in registry.outcomes:
        # As text where h5ad could not store the column otherwise.
        obs[f"outcome_{name}"] = rows[name] if pd.api.types.is_numeric_dtype(rows[name]) else rows[name].astype(str)
    obs.index = [
        f"{patient}_{visit}"
        for patient, visit in zip(visits["patient"], visits.groupby("patient").cumcount(), strict=True)
    ]
    raw = visits[list(registry.items)].astype(float)
    transformed = np.column_stack([transform(raw[name]) for name, (_, transform) in registry.items.items()])
    return AnnData(
        X=transformed,
        obs=obs,
        var=pd.DataFrame({"transform": [name for name, _ in registry.items.values()]}, index=list(registry.items)),
        layers={"raw": raw.to_numpy()},
        uns={"time_unit": registry.time_unit},
    )


def _find(registry: Registry, file: File, path: str | os.PathLike[str] | None) -> Path:
    """The table in the given folder or, without one, in the known folders. There is no original to download as CSV."""
    folders = _default_folders() if path is None else [Path(path).expanduser()]
    found = _first_file([place for folder in folders if folder.is_dir() for place in _candidates(file, folder)])
    if found is not None:
        return found
    where = ", ".join(map(str, folders)) or "any data folder"
    name = file.filename.split("_")[0]
    msg = (
        f"{file.filename} is not in {where}. {file.name}: {file.origin}; licence: {file.licence}, which is why it is not "
        f"bundled. Export it with R, write.csv(v, '{name}_visits.csv', row.names=FALSE, na='') and the same for b as "
        f"'{name}_baseline.csv', after {registry.export}; then give the folder as path, or name it in {ENVIRONMENT_VARIABLE}."
    )
    raise FileNotFoundError(msg)


def _check(file: File, table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        msg = f"{file.filename} has no column {missing[0]!r}; it has {', '.join(map(str, table.columns))}. Expected: {file.origin}."
        raise ValueError(msg)
    if len(table) != file.shape[0]:
        msg = f"{file.filename} has {len(table)} rows; {file.shape[0]} were expected. Expected: {file.origin}."
        raise ValueError(msg)
