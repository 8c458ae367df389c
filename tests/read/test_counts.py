"""What the readers refuse, in which words, and what they take: one test for each row of bad input."""

import warnings

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from dynapath.datasets import simulate_snapshots
from dynapath.read import counts as read
from dynapath.read.counts import Remembered, read_counts, read_labels, read_points, read_snapshots, read_times


@pytest.fixture(scope="module")
def simulated():
    cells = simulate_snapshots(n_cells=5, n_genes=12, times=(0, 0.5, 1))
    del cells.layers["expected"]
    return cells


@pytest.fixture
def cells(simulated):
    return simulated.copy()


def with_times(cells, values):
    """The cells at times 0, 1, 2 of the given values."""
    values = np.asarray(values, dtype=object)
    cells.obs["time"] = pd.Series(list(values[np.repeat([0, 1, 2], 15)]), index=cells.obs_names)
    return cells


# --- missing keys name what there is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["time_key", "batch_key", "labels_key", "size_factor_key"])
def test_a_missing_column_raises_and_names_those_there_are(cells, argument):
    with pytest.raises(KeyError, match=rf"no column 'tiem' \({argument}\); present: group, library, time"):
        read_snapshots(cells, **{"time_key": "time", argument: "tiem"})


def test_a_missing_layer_raises_and_names_those_there_are(cells):
    cells.layers["raw"] = cells.X
    with pytest.raises(KeyError, match=r"layers has no 'counts'; present: raw"):
        read_snapshots(cells, time_key="time", layer="counts")


def test_a_missing_layer_among_none_says_none(cells):
    with pytest.raises(KeyError, match=r"present: none"):
        read_snapshots(cells, time_key="time", layer="counts")


def test_a_missing_representation_raises_and_names_those_there_are(cells):
    with pytest.raises(KeyError, match=r"obsm has no 'X_pca'; present: Z_true, velocity_true.*sc\.pp\.pca"):
        read_points(cells, time_key="time", use_rep="X_pca")


def test_without_counts_the_layers_are_named(cells):
    cells.layers["raw"] = cells.X
    cells.X = None
    with pytest.raises(ValueError, match=r"X is empty; layers: raw.*layer="):
        read_counts(cells)


# --- times ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_time_that_is_not_finite_raises_and_names_the_cell(cells, bad):
    cells.obs.loc[cells.obs_names[[3, 7]], "time"] = bad
    with pytest.raises(ValueError, match=rf"obs\['time'\] is {bad} for cell '{cells.obs_names[3]}' and 1 more"):
        read_times(cells, "time")


@pytest.mark.parametrize("dtype", ["category", object, "string"])
def test_a_missing_time_among_strings_is_missing(cells, dtype):
    texts = cells.obs["time"].astype(str)
    texts.iloc[4] = None
    cells.obs["time"] = texts.astype(dtype)
    with pytest.raises(ValueError, match=rf"is nan for cell '{cells.obs_names[4]}'"):
        read_times(cells, "time")


def test_one_time_is_not_a_time_course(cells):
    cells.obs["time"] = 2.5
    with pytest.raises(ValueError, match=r"only one distinct time \(2\.5\)"):
        read_times(cells, "time")


def test_dates_raise_and_ask_for_numbers(cells):
    with_times(cells, pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-05"]))
    cells.obs["time"] = pd.to_datetime(cells.obs["time"])
    with pytest.raises(ValueError, match=r"holds dates such as '2024-01-01 00:00:00', not numbers.*e\.g\. days"):
        read_times(cells, "time")


@pytest.mark.parametrize("dtype", ["category", object, "string"])
def test_a_text_that_reads_as_no_number_is_named(cells, dtype):
    with_times(cells, ["0", "day 2", "5"])
    cells.obs["time"] = cells.obs["time"].astype(dtype)
    with pytest.raises(ValueError, match=r"has the value 'day 2', which does not read as a number.*Give numbers"):
        read_times(cells, "time")


def test_ordered_categories_in_the_order_of_letters_raise_and_show_it(cells):
    with_times(cells, ["2", "10", "30"])
    cells.obs["time"] = pd.Categorical(cells.obs["time"], categories=["30", "2", "10"], ordered=True)
    with pytest.raises(ValueError, match=r"order of the categories of obs\['time'\] \(30, 2, 10\) is not that"):
        read_times(cells, "time")


@pytest.mark.parametrize(
    "column",
    [
        lambda values: values,
        lambda values: values.astype(np.float32),
        lambda values: values.astype(int),
        lambda values: values.astype("Int64"),
        lambda values: values.astype(str),
        lambda values: values.astype(str).astype("string"),
        lambda values: values.astype("category"),
        lambda values: values.astype(str).astype("category"),
        lambda values: pd.Categorical(values.astype(str), categories=["10.0", "2.0", "30.0"]),
        lambda values: pd.Categorical(values.astype(str), categories=["2.0", "10.0", "30.0"], ordered=True),
        lambda values: pd.Categorical(values.astype(str), categories=["2.0", "10.0", "30.0", "unknown"]),
        lambda values: pd.Series([float(v) for v in values], index=values.index, dtype=object),
    ],
    ids=[
        "float64",
        "float32",
        "int",
        "nullable int",
        "str",
        "string",
        "category",
        "category of str",
        "unordered, by letters",
        "ordered, by value",
        "a category without cells",
        "objects",
    ],
)
def test_times_are_read_from_whatever_reads_as_numbers(cells, column):
    times = np.repeat([2.0, 10.0, 30.0], 15)
    cells.obs["time"] = column(pd.Series(times, index=cells.obs_names))
    read_back = read_times(cells, "time")
    assert read_back.dtype == float
    np.testing.assert_array_equal(read_back, times)


# --- counts --------------------------------------------------------------------------------------------------------------


def test_negative_counts_raise_and_name_the_smallest(cells):
    cells.X = sparse.csr_matrix(cells.X - 3 * sparse.eye(*cells.shape))
    with pytest.raises(ValueError, match=r"X has negative values \(smallest -3\)"):
        read_counts(cells)


def test_log_normalised_data_raise_and_name_the_layer_to_use(cells):
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X.log1p()
    with pytest.raises(ValueError, match=r"looks log-normalised.*Use layer='counts'"):
        read_counts(cells)


def test_log_normalised_data_without_other_layers_ask_for_raw_counts(cells):
    cells.X = cells.X.log1p()
    with pytest.raises(ValueError, match=r"looks log-normalised.*Use the raw counts \(layers: none\)\.$"):
        read_counts(cells)


def test_the_layer_named_is_one_that_holds_counts(cells):
    cells.layers["scaled"] = cells.X.log1p() - 1.0 * sparse.eye(*cells.shape)
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X.log1p()
    with pytest.raises(ValueError, match=r"Use layer='counts'"):
        read_counts(cells)
    with pytest.raises(ValueError, match=r"Use layer='counts'"):
        read_counts(cells, "scaled")


def test_where_only_x_holds_counts_it_is_named(cells):
    cells.layers["log"] = cells.X.log1p()
    with pytest.raises(ValueError, match=r"Use layer=None, which is X"):
        read_counts(cells, "log")


def test_normalised_data_raise_and_name_a_value(cells):
    cells.layers["norm"] = cells.X * 1e3 / 7
    with pytest.raises(ValueError, match=r"layers\['norm'\] has values that are not integers.*looks normalised"):
        read_counts(cells, "norm")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_counts_that_are_not_finite_raise_and_name_the_cell(cells, bad):
    X = cells.X.toarray()
    X[6, 2] = bad
    cells.X = sparse.csr_matrix(X)
    with pytest.raises(ValueError, match=rf"X has NaN or infinite values, first in cell '{cells.obs_names[6]}'"):
        read_counts(cells)


def test_empty_cells_raise_and_name_the_first(cells):
    X = cells.X.toarray()
    X[[8, 11]] = 0
    cells.X = sparse.csr_matrix(X)
    with pytest.raises(
        ValueError, match=rf"2 cells have no counts in X, the first is '{cells.obs_names[8]}'.*filter_cells"
    ):
        read_counts(cells)


STORED = {
    "csr": lambda X: X,
    "csr_array": sparse.csr_array,
    "csc": sparse.csc_matrix,
    "dense": lambda X: X.toarray(),
    "int64": lambda X: X.astype(np.int64),
    "float64": lambda X: X.astype(np.float64),
    "dense int64": lambda X: X.toarray().astype(np.int64),
    "explicit zeros": lambda X: with_zeros(X),
    "dask of csr": lambda X: da.from_array(X, chunks=(7, X.shape[1]), asarray=False),
    "dask in both directions": lambda X: da.from_array(X.toarray(), chunks=(7, 5)),
    "dask of csr in both directions": lambda X: da.from_array(X, chunks=(7, 5), asarray=False),
}


def with_zeros(X):
    coo = X.tocoo()
    empty = np.argwhere(X.toarray() == 0)[:5]
    row, col = np.r_[coo.row, empty[:, 0]], np.r_[coo.col, empty[:, 1]]
    return sparse.csr_matrix((np.r_[coo.data, np.zeros(len(empty))], (row, col)), shape=X.shape)


def assert_same_counts(counts, X):
    assert isinstance(counts, sparse.csr_matrix)
    assert counts.dtype == np.float32
    assert (counts != X).nnz == 0


@pytest.mark.parametrize("stored", list(STORED))
def test_counts_are_the_same_however_they_are_stored(cells, stored):
    expected = cells.X.copy()
    cells.X = STORED[stored](cells.X)
    assert_same_counts(read_counts(cells), expected)
    cells.layers["raw"] = cells.X
    assert_same_counts(read_counts(cells, "raw"), expected)


def test_counts_of_a_view_are_those_of_its_cells(cells):
    cells.X = (cells.X + sparse.csr_matrix(np.eye(1, 12)[[0] * 45])).tocsr()  # no cell is empty among few genes
    X = cells.X.copy()
    for view in (cells[::2], cells[[5, 3, 9]], cells[:, ::3]):
        rows, columns = cells.obs_names.get_indexer(view.obs_names), cells.var_names.get_indexer(view.var_names)
        assert_same_counts(read_counts(view), X[rows][:, columns])
        assert view.is_view


@pytest.mark.parametrize("stored", ["csr", "csc", "dense", "int64"])
@pytest.mark.parametrize("part", [slice(None), slice(3, 30, 2)], ids=["all", "view"])
def test_backed_counts_are_read(cells, stored, part, tmp_path):
    expected = cells.X[part]
    cells.X = STORED[stored](cells.X)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")[part]
    assert_same_counts(read_counts(backed), expected)
    assert backed.isbacked


def test_the_users_matrix_is_not_changed(cells):
    cells.X = with_zeros(cells.X)
    before = cells.X.copy()
    read_snapshots(cells, time_key="time").to_anndata()
    np.testing.assert_array_equal(cells.X.data, before.data)
    np.testing.assert_array_equal(cells.X.indices, before.indices)


# --- batches ---------------------------------------------------------------------------------------------------------------


def batch_of(cells, batches_at):
    """Batches that take turns at each of the three times."""
    within = np.tile(np.arange(15), 3)
    at = np.repeat([0, 1, 2], 15)
    cells.obs["batch"] = [batches_at[t][i % len(batches_at[t])] for t, i in zip(at, within, strict=True)]
    return cells


@pytest.mark.parametrize(
    "batches_at",
    [("a", "b", "c"), ("a", "ab", "c"), ("a", "bc", "bc")],
    ids=["one batch a time", "one batch apart", "two batches apart"],
)
def test_batches_nested_in_time_raise(cells, batches_at):
    with pytest.raises(ValueError, match=r"obs\['batch'\] is nested in obs\['time'\].*would remove the dynamics"):
        read_snapshots(batch_of(cells, batches_at), time_key="time", batch_key="batch")


@pytest.mark.parametrize(
    "batches_at", [("ab", "ab", "ab"), ("ab", "bc", "c"), ("a", "a", "a"), ("a", "ab", "b")], ids="-".join
)
def test_batches_that_are_connected_through_times_pass(cells, batches_at):
    snapshots = read_snapshots(batch_of(cells, batches_at), time_key="time", batch_key="batch")
    assert list(snapshots.batch) == list(cells.obs["batch"])


def test_a_missing_batch_raises_and_counts_the_cells(cells):
    batch_of(cells, ("ab", "ab", "ab")).obs.loc[cells.obs_names[:4], "batch"] = None
    with pytest.raises(ValueError, match=r"obs\['batch'\] is missing for 4 cells"):
        read_snapshots(cells, time_key="time", batch_key="batch")


def test_a_batch_that_the_fit_has_not_seen_raises(cells):
    batch_of(cells, ("ax", "a", "a"))
    with pytest.raises(ValueError, match=r"batches the fit has not seen: x; it knows a, b"):
        read_snapshots(cells, time_key="time", batch_key="batch", remembered=Remembered(batches=["a", "b"]))


def test_batches_of_a_fit_keep_their_codes(cells):
    batch_of(cells, ("b", "b", "b"))
    snapshots = read_snapshots(cells, time_key="time", batch_key="batch", remembered=Remembered(batches=["a", "b"]))
    assert snapshots.batch.codes.tolist() == [1] * 45


# --- size factors and labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_a_size_factor_that_cannot_scale_raises_and_names_the_cell(cells, bad):
    cells.obs["size"] = 1.0
    cells.obs.loc[cells.obs_names[5], "size"] = bad
    with pytest.raises(ValueError, match=rf"obs\['size'\] must be positive and finite; cell '{cells.obs_names[5]}'"):
        read_snapshots(cells, time_key="time", size_factor_key="size")


def test_the_library_is_the_size_factor_or_the_total_count(cells):
    cells.obs["size"] = np.linspace(0.5, 2, 45)
    np.testing.assert_array_equal(
        read_snapshots(cells, time_key="time", size_factor_key="size").library, cells.obs["size"]
    )
    np.testing.assert_allclose(read_snapshots(cells, time_key="time").library, np.asarray(cells.X.sum(1)).ravel())


def test_labels_are_sorted_and_missing_ones_are_unlabelled(cells):
    cells.obs["type"] = pd.Categorical(["b", "a", None] * 15, categories=["b", "a", "never"])
    labels = read_labels(cells, "type")
    assert list(labels.categories) == ["a", "b", "unlabelled"]
    assert list(labels[:3]) == ["b", "a", "unlabelled"]


def test_labels_of_a_fit_keep_their_order(cells):
    cells.obs["type"] = ["b", "new", "c"] * 15
    with pytest.warns(UserWarning, match="labels the fit has not seen: new"):
        labels = read_labels(cells, "type", names=["a", "b", "c"])
    assert list(labels.categories) == ["a", "b", "c", "unlabelled"]
    assert list(labels[:3]) == ["b", "unlabelled", "c"]


# --- groups, representations, design ------------------------------------------------------------------------------------------


def test_too_many_groups_for_the_smallest_snapshot_raise_and_name_it():
    times = np.repeat([0.0, 2.0, 4.0], [20, 7, 30])
    with pytest.raises(ValueError, match=r"n_groups=4 is too large for the snapshot at time 2, which has 7 cells"):
        read.check_groups_fit(times, 4)
    read.check_groups_fit(times, 3)


def test_numbers_of_groups_are_limited_by_the_smallest_snapshot_which_is_said():
    times = np.repeat([0.0, 2.0, 4.0], [20, 7, 30])
    with pytest.warns(UserWarning, match=r"4, 6 cannot be tried: the snapshot at time 2 has 7 cells") as caught:
        kept, said = read.limit_groups(times, (1, 3, 4, 6))
    assert kept == (1, 3)
    assert [str(w.message) for w in caught] == said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read.limit_groups(times, (1, 3)) == ((1, 3), [])
    with pytest.raises(ValueError, match="n_groups=4 is too large"):
        read.limit_groups(times, (4, 5))


@pytest.mark.parametrize("n_groups", [0, -1, 2.5])
def test_a_number_of_groups_that_is_none_raises(n_groups):
    with pytest.raises(ValueError, match=rf"positive whole number; it is {n_groups}"):
        read.check_groups_fit(np.repeat([0.0, 1.0], 20), n_groups)


def test_a_representation_is_read_as_it_is(cells):
    points, times = read_points(cells, time_key="time", use_rep="Z_true")
    np.testing.assert_array_equal(points, cells.obsm["Z_true"])
    np.testing.assert_array_equal(times, cells.obs["time"])


def test_a_representation_may_be_a_table(cells):
    cells.obsm["table"] = pd.DataFrame(cells.obsm["Z_true"], index=cells.obs_names, columns=["x", "y"])
    np.testing.assert_array_equal(read_points(cells, time_key="time", use_rep="table")[0], cells.obsm["Z_true"])


def test_a_representation_that_is_not_finite_raises_and_names_the_cell(cells):
    cells.obsm["Z_true"][9, 1] = np.nan
    with pytest.raises(
        ValueError, match=rf"obsm\['Z_true'\] has NaN or infinite values, first in cell '{cells.obs_names[9]}'"
    ):
        read_points(cells, time_key="time", use_rep="Z_true")


def test_a_representation_of_matrices_raises(cells):
    cells.obsm["cube"] = np.zeros((45, 2, 2))
    with pytest.raises(ValueError, match=r"its shape is \(45, 2, 2\)"):
        read_points(cells, time_key="time", use_rep="cube")


def test_two_times_warn_that_links_are_not_identifiable():
    with pytest.warns(UserWarning, match="exactly two times.*not identifiable"):
        read.warn_about_design(2, 2)


def test_fewer_times_than_dimensions_and_two_warn():
    with pytest.warns(UserWarning, match=r"3 times are fewer than n_latent \+ 2 = 4"):
        read.warn_about_design(3, 2)


def test_enough_times_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read.warn_about_design(4, 2)


def test_genes_without_counts_warn_and_one_is_named(cells):
    X = cells.X.toarray()
    X[:, 4] = 0
    X[:, 5:] += 1
    with pytest.warns(UserWarning, match=rf"no counts at all \(such as '{cells.var_names[4]}'\)"):
        read.warn_about_genes(with_zeros(sparse.csr_matrix(X)), cells.var_names)


# --- what goes on to the model -------------------------------------------------------------------------------------------------


def test_the_data_for_the_model_are_apart_from_the_users(cells):
    batch_of(cells, ("ab", "ab", "ab"))
    before = cells.copy()
    data, columns = read_snapshots(cells, time_key="time", batch_key="batch").to_anndata()
    data.obs["more"] = 1
    data.uns["more"] = 1
    assert columns == {"time_key": "time", "batch_key": "batch"}
    assert list(data.obs_names) == list(cells.obs_names)
    assert list(data.var_names) == list(cells.var_names)
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    assert set(cells.uns) == set(before.uns)


def test_repeated_names_of_cells_are_no_obstacle(cells):
    cells.obs_names = ["cell"] * cells.n_obs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Observation names are not unique")
        data, _ = read_snapshots(cells, time_key="time").to_anndata()
    assert data.n_obs == 45
