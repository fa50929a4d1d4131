"""Values that look right but are not, and numbers beyond reason, are one clear error each."""

import numpy as np
import pytest

import deeplabzoo as dz
from deeplabzoo.core.analysis import smallest_live_size
from deeplabzoo.core.spec import ArchSpec, read_spec
from deeplabzoo.core.weights import check_weights, plain, seeded_weights
from deeplabzoo.errors import SpecError, WeightsError

HUGE = 10**400


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("output_stride", {"output_stride": 16.0}),
        ("num_classes", {"num_classes": 21.0}),
        ("num_classes", {"num_classes": HUGE}),
        ("aspp.fusion_kernel", {"aspp": {"fusion_kernel": 1.0}}),
        ("aspp.fusion_kernel", {"aspp": {"fusion_kernel": True}}),
        ("decoder.kernel", {"decoder": {"kernel": 3.0}}),
        ("aspp.rates", {"rates": (6, 12, HUGE)}),
        ("aspp.order", {"aspp": {"order": [["conv1x1"]]}}),
        ("aspp.order", {"aspp": {"order": 5}}),
        ("aspp.dropout", {"aspp": {"dropout": HUGE}}),
        ("aspp.epsilon", {"aspp": {"epsilon": 1e-50}}),
        ("aspp.momentum", {"aspp": {"momentum": 0.9999999999}}),
        ("aux", {"aux": "no"}),
        ("backbone", {"backbone": 5}),
        ("backbone.pool_ceil", {"backbone": {"name": "resnet50", "pool_ceil": True, "pool_padding": "same"}}),
    ],
)
def test_a_near_miss_names_its_field(field, options):
    with pytest.raises(SpecError, match=rf"^{field}\b"):
        dz.spec("v3plus", **options)


def test_a_wrong_spec_leaves_the_right_one_alone():
    with pytest.raises(SpecError):
        dz.graph("v3plus", decoder={"kernel": 3.0})
    assert dz.graph("v3plus").parameters()


@pytest.mark.parametrize("changes", [{"backbone": "resnet101"}, {"aspp": {"rates": (1,)}}, {"aspp": None}])
def test_sections_can_only_be_replaced_by_sections(changes):
    with pytest.raises(SpecError, match=next(iter(changes))):
        dz.spec("v3").replace(**changes)


def test_null_means_absent():
    spec = dz.spec("v3")
    assert ArchSpec.from_dict({**spec.to_dict(), "decoder": None, "aux": None}) == spec


def test_deep_nesting_is_an_error_of_the_spec(tmp_path):
    for name in ("deep.json", "deep.toml"):
        path = tmp_path / name
        path.write_text(("a = " if name.endswith("toml") else "") + "[" * 100_000)
        with pytest.raises(SpecError, match=name):
            read_spec(path)


def test_the_live_size_of_a_large_rate_is_found_at_once():
    graph = dz.graph("v3", rates=(6, 12, 100_000))
    assert 1_600_000 <= smallest_live_size(graph, 16) <= 1_600_032


@pytest.mark.parametrize("dtype", ["object", "complex64", "U1"])
def test_weights_must_be_real_numbers(dtype):
    graph = dz.graph("v3", backbone="mobilenet_v2", width=0.25)
    weights = seeded_weights(graph)
    name = "classifier.conv.bias"
    with pytest.raises(WeightsError, match=name):
        check_weights(graph, {**weights, name: weights[name].astype(dtype)})


def test_plain_widens_what_frameworks_do_not_read():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes holds numpy's bfloat16")
    values = np.array([1.0, -2.5, 3e38])
    assert plain(values.astype(ml_dtypes.bfloat16)).dtype == np.float32
    big = plain(values.astype(">f4"))
    assert big.dtype == np.float32
    assert big.dtype.isnative
    assert np.array_equal(big, values.astype(np.float32))
