"""Options with wrong values: those of the backbones, and --cfg-options."""

import torch
from fuzzing import changed, ending, fuzz, numbers_of_cases, odd_values
from hypothesis import strategies as st
from mmengine.registry import MODELS

import flatten_det.backbones  # noqa: F401

_PVT = dict(embed_dims=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), mlp_ratios=(1, 1, 1, 1))
_SWIN = dict(embed_dims=8, num_heads=(1, 2, 2, 2))
_DEPTHS = dict(depths=(1, 1, 1, 1))
_STAGES = dict(out_indices=(0, 2, 3), attn_types=("L", "S", "L", "S"))
_COMMON = dict(
    in_channels=3,
    focusing_factor=3,
    kernel_size=3,
    qkv_bias=True,
    drop_path_rate=0.1,
    pretrain_img_size=32,
    frozen_stages=1,
    norm_eval=False,
    mask_padding=True,
    with_cp=False,
)
_FAMILIES = {
    "FLattenPVT": _STAGES
    | dict(arch=_PVT | _DEPTHS | dict(sr_ratios=(4, 2, 2, 1)), la_sr_ratios=(2, 1, 1, 1)),
    "FLattenPVTv2": _STAGES | dict(arch=_PVT | _DEPTHS | dict(sr_ratios=(4, 2, 2, 1))),
    "FLattenSwin": _STAGES
    | dict(arch=_SWIN | _DEPTHS, window_size=3, la_window_size=None, mlp_ratio=2.0),
    "FLattenCSwin": _STAGES | dict(arch=_SWIN | _DEPTHS, split_size=(1, 2, 2, 2), mlp_ratio=2.0),
    "FLattenDeiT": dict(
        arch=dict(embed_dims=(8,), num_heads=(2,), mlp_ratios=(1,), depths=(1,)), attn_types=("L",)
    ),
}


@numbers_of_cases
def test_backbones(num_cases):
    """Wrong values are named; networks that are built take images and give finite maps."""
    image = torch.randn(1, 3, 33, 47, generator=torch.Generator().manual_seed(0))

    def check(case: tuple[str, dict]) -> None:
        name, options = case
        try:
            backbone = MODELS.build({**options, "type": name})
        except ValueError:
            return
        except TypeError as error:
            if "unexpected keyword argument" in str(error):
                return
            raise
        if options["in_channels"] == 3:
            with torch.no_grad():
                maps = backbone.eval()(image)
            assert all(one.isfinite().all() for one in maps)

    families = st.sampled_from(list(_FAMILIES))
    fuzz(check, num_cases, families.flatmap(_changed_options))


def _changed_options(name: str) -> st.SearchStrategy[tuple[str, dict]]:
    options = _COMMON | _FAMILIES[name]
    values = changed(options).filter(lambda value: isinstance(value, dict))
    return st.tuples(st.just(name), values.map(lambda value: {"in_channels": 3} | value))


_KEYS = [
    "model",
    "model.backbone",
    "train_cfg.max_iters",
    "x",
    "",
    ".",
    "model.",
    "a.b.c",
    "test_cfg",
]
_KEYS += ["train_pipeline.0.type", "train_pipeline.9.type", "train_pipeline.-1", "work_dir"]


@numbers_of_cases
def test_cfg_options(train_tool, tmp_path, monkeypatch, num_cases):
    """They change the config, or one message says why they do not."""
    config = tmp_path / "config.py"
    config.write_text(
        "train_pipeline = [dict(type='LoadImageFromFile')]\ntest_cfg = None\nwork_dir = 'run'\n"
        "train_cfg = dict(max_iters=3)\nmodel = dict(type='X', backbone=dict(depths=(1, 2)))\n"
    )
    configs = []
    monkeypatch.setattr(train_tool, "train", lambda cfg, **options: configs.append(cfg))

    def check(options: list[str]) -> None:
        configs.clear()
        end = ending(train_tool.main, config, "--cfg-options", *options)
        end.check("--cfg-options")
        assert (end.code == 0) == bool(configs)

    texts = st.text(max_size=12) | odd_values.map(str) | odd_values.map(repr)
    values = st.lists(texts | st.sampled_from(["[", "(", "]", ")", "[(1,2),[3]]"]), max_size=3).map(
        ",".join
    )
    pairs = st.tuples(st.sampled_from(_KEYS) | st.text(max_size=5), values).map("=".join)
    # What begins with a dash is another option.
    options = (pairs | texts).filter(lambda option: not option.startswith("-"))
    fuzz(check, num_cases, st.lists(options, min_size=1, max_size=3))
