"""What may stand in `uns`, and how results replace results."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from dynapath import write

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")


@pytest.fixture
def cells():
    return ad.AnnData(sparse.csr_matrix(np.eye(4, 3, dtype=np.float32)))


def result(n_groups=2, **fit):
    rng = np.random.default_rng(0)
    responsibilities = rng.dirichlet(np.ones(n_groups), size=4)
    return {
        "latent": rng.normal(size=(4, 2)),
        "std": rng.uniform(size=(4, 2)),
        "velocity": rng.normal(size=(4, 2)),
        "responsibilities": responsibilities,
        "groups": [str(k) for k in range(n_groups)],
        "fit": {"kind": "dynamic_vae", "params": {"n_groups": n_groups}, **fit},
    }


# --- the sanitizer ---------------------------------------------------------------------------------------------------------


ALLOWED = {
    "text": "a",
    "number": 1.5,
    "whole": 3,
    "flag": True,
    "numpy number": np.float32(2),
    "numpy flag": np.bool_(True),
    "array": np.arange(3),
    "matrix": np.eye(2, dtype=np.float32),
    "texts": np.array(["a", "b"], dtype=object),
    "no texts": np.array([], dtype=object),
    "table": pd.DataFrame({"x": [1.0, 2.0], "phase": ["static", "joint"]}),
    "list": [1, 2],
    "tuple": (1.0, 2.0),
    "list of texts": ["a", "b"],
    "nothing in a list": [],
    "nested": {"deep": {"deeper": 1}},
    "nested, empty": {},
}


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_what_passes_is_written_and_read_back(cells, tmp_path, suffix):
    cells.uns["fit"] = write.for_uns(ALLOWED)
    path = tmp_path / f"cells.{suffix}"
    (cells.write_h5ad if suffix == "h5ad" else cells.write_zarr)(path)
    back = (ad.read_h5ad if suffix == "h5ad" else ad.read_zarr)(path).uns["fit"]
    assert set(back) == set(ALLOWED)
    np.testing.assert_array_equal(back["matrix"], np.eye(2))
    assert list(map(str, back["texts"])) == list(map(str, back["list of texts"])) == ["a", "b"]
    assert list(back["tuple"]) == [1.0, 2.0]
    assert len(back["nothing in a list"]) == 0
    assert back["nested"]["deep"]["deeper"] == 1
    np.testing.assert_array_equal(back["table"]["x"], [1, 2])


def test_tuples_and_lists_become_arrays():
    cleaned = write.for_uns({"tuple": (1, 2), "texts": ("a", "b")})
    assert cleaned["tuple"].tolist() == [1, 2]
    assert cleaned["texts"].dtype == object


def test_none_is_left_out():
    assert write.for_uns({"a": None, "b": {"c": None, "d": 1}}) == {"b": {"d": 1}}


def test_keys_become_texts():
    assert write.for_uns({1: {2: 3}}) == {"1": {"2": 3}}


def test_what_passes_is_a_copy():
    given = {"array": np.zeros(2), "table": pd.DataFrame({"x": [0.0]}), "nested": {"array": np.zeros(2)}}
    cleaned = write.for_uns(given)
    cleaned["array"][:] = cleaned["nested"]["array"][:] = 1
    cleaned["table"].loc[0, "x"] = 1
    assert not given["array"].any()
    assert not given["nested"]["array"].any()
    assert given["table"].loc[0, "x"] == 0


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2),
        {1, 2},
        object(),
        pd.Timestamp("2024-01-01"),
        np.datetime64("2024-01-01"),
        np.array(["2024-01-01"], dtype="datetime64[D]"),
        np.array([{}], dtype=object),
        np.array(["a", None], dtype=object),
    ],
    ids=lambda value: type(value).__name__ + getattr(getattr(value, "dtype", None), "name", ""),
)
def test_what_no_file_can_hold_raises_and_names_its_place(value):
    with pytest.raises(TypeError, match=r"uns\['state'\]\['weight'\] holds an? .*cannot be written to h5ad"):
        write.for_uns({"state": {"weight": value}})


@pytest.mark.parametrize(
    "value", [[torch.zeros(2)], [{1, 2}], [object()], ({"a": 1},)], ids=["tensor", "set", "object", "dict"]
)
def test_what_no_file_can_hold_is_found_within_lists(value):
    with pytest.raises(TypeError, match=r"uns\['state'\]"):
        write.for_uns({"state": value})


def test_a_key_with_a_slash_raises_and_names_its_place():
    with pytest.raises(TypeError, match=r"uns\['state'\] has a key with a slash \('a/b'\)"):
        write.for_uns({"state": {"a/b": 1}})


# --- slots -------------------------------------------------------------------------------------------------------------------


def test_results_are_written_with_their_types(cells):
    given = result(n_groups=3)
    write.write_group_dynamics(cells, "fit", **given)
    assert set(cells.obsm) == {"X_fit", "fit_std", "fit_velocity", "fit_groups"}
    assert list(cells.obs) == ["fit_group", "fit_prob", "fit_undetermined"]
    assert all(slot.dtype == np.float32 for slot in cells.obsm.values())
    assert cells.obs["fit_group"].cat.categories.tolist() == ["0", "1", "2"]
    assert cells.obs["fit_group"].astype(int).tolist() == given["responsibilities"].argmax(1).tolist()
    np.testing.assert_allclose(cells.obs["fit_prob"], given["responsibilities"].max(1))
    assert cells.obs["fit_undetermined"].tolist() == (given["responsibilities"].max(1) < 0.6).tolist()
    assert cells.uns["fit"]["schema"] == write.SCHEMA
    assert {"dynapath", "anndata", "scvi-tools", "torch"} <= set(cells.uns["fit"]["versions"])


def test_a_fit_is_replaced_whole(cells):
    write.write_group_dynamics(cells, "fit", **result(n_groups=3, history={"loss": np.zeros(2)}))
    cells.uns["fit_group_colors"] = ["r", "g", "b"]
    write.write_group_dynamics(cells, "fit", **result(n_groups=2))
    assert "history" not in cells.uns["fit"]
    assert "fit_group_colors" not in cells.uns
    assert cells.obs["fit_group"].cat.categories.tolist() == ["0", "1"]
    assert cells.obsm["fit_groups"].shape == (4, 2)


def test_what_cannot_be_written_leaves_the_previous_fit_alone(cells):
    write.write_group_dynamics(cells, "fit", **result())
    before = cells.copy()
    with pytest.raises(TypeError):
        write.write_group_dynamics(cells, "fit", **result(n_groups=3, state={"weight": torch.zeros(1)}))
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    np.testing.assert_array_equal(cells.obsm["X_fit"], before.obsm["X_fit"])


@pytest.mark.parametrize("slot", ["X_fit", "fit_std", "fit_velocity", "fit_groups"])
def test_an_array_of_the_user_is_not_overwritten(cells, slot):
    cells.obsm[slot] = np.zeros((4, 2))
    with pytest.raises(ValueError, match=rf"key_added='fit' would overwrite obsm\['{slot}'\].*Choose another"):
        write.check_key_is_free(cells, "fit")


@pytest.mark.parametrize("column", ["fit_group", "fit_prob", "fit_undetermined"])
def test_a_column_of_the_user_is_not_overwritten(cells, column):
    cells.obs[column] = 0
    with pytest.raises(ValueError, match=rf"would overwrite obs\['{column}'\]"):
        write.check_key_is_free(cells, "fit")


@pytest.mark.parametrize("value", [1, {"kind": "of my own"}, {}])
def test_an_entry_of_uns_of_the_user_is_not_overwritten(cells, value):
    cells.uns["fit"] = value
    with pytest.raises(ValueError, match=r"would overwrite uns\['fit'\]"):
        write.check_key_is_free(cells, "fit")


def test_an_earlier_fit_may_be_overwritten(cells):
    write.write_group_dynamics(cells, "fit", **result())
    write.check_key_is_free(cells, "fit")


@pytest.mark.parametrize("key", ["", "a/b"])
def test_a_key_that_cannot_name_slots_raises(cells, key):
    with pytest.raises(ValueError, match="cannot name slots"):
        write.check_key_is_free(cells, key)
