"""Draw with Infinity as published, its late scales sparse.

    cd Infinity && python PATH/examples/infinity.py --model infinity_2b_reg.pth --vae infinity_vae_d32reg.pth \\
        --text flan-t5-xl --out cat.png "a cat in a spacesuit"

Run it from a checkout of https://github.com/FoundationVision/Infinity, whose own helpers load the model and draw; one
line attaches sparvar to it. Shows that nothing of Infinity changes, and what sparvar found in it: every self-attention,
taken or not, and why. ``docs/models/infinity.md`` says what to install and which settings the 8B wants.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

sys.path[0] = str(Path.cwd())  # the checkout, in place of this folder, where "infinity" would be this script
from infinity.utils.dynamic_resolution import dynamic_resolution_h_w  # noqa: E402
from tools.run_infinity import gen_one_img, load_tokenizer, load_transformer, load_visual_tokenizer  # noqa: E402

import sparvar  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("prompt")
    parser.add_argument("--model", required=True, help="the transformer's checkpoint")
    parser.add_argument("--vae", required=True, help="the image tokenizer's checkpoint")
    parser.add_argument("--text", required=True, help="folder of flan-t5-xl")
    parser.add_argument("--size", default="1M", choices=("0.06M", "0.25M", "0.60M", "1M"), help="pixels of the image")
    parser.add_argument("--plan", default="auto", help="a plan's file; auto: by the papers' rules, not calibrated")
    parser.add_argument("--inner", default="inductor", choices=("inductor", "eager"), help="compiler of the graphs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("infinity.png"))
    asked = parser.parse_args()

    # As in Infinity's tools/interactive_infer.ipynb, for the 2B.
    args = argparse.Namespace(
        pn=asked.size,
        model_path=asked.model,
        vae_path=asked.vae,
        text_encoder_ckpt=asked.text,
        cfg_insertion_layer=0,
        vae_type=32,
        add_lvl_embeding_only_first_block=1,
        use_bit_label=1,
        model_type="infinity_2b",
        rope2d_each_sa_layer=1,
        rope2d_normalized_by_hw=2,
        use_scale_schedule_embedding=0,
        sampling_per_bits=1,
        text_channels=2048,
        apply_spatial_patchify=0,
        h_div_w_template=1.0,
        use_flex_attn=0,
        cache_dir="/dev/shm",
        checkpoint_type="torch",
        seed=asked.seed,
        bf16=1,
        enable_model_cache=0,
    )
    tokenizer, encoder = load_tokenizer(t5_path=args.text_encoder_ckpt)
    vae = load_visual_tokenizer(args)
    infinity = load_transformer(vae, args)

    infinity = torch.compile(infinity, backend="sparvar", options={"plan": asked.plan, "inner": asked.inner})

    scales = [(1, h, w) for _, h, w in dynamic_resolution_h_w[1.0][asked.size]["scales"]]
    image = gen_one_img(
        infinity,
        vae,
        tokenizer,
        encoder,
        asked.prompt,
        g_seed=asked.seed,
        gt_leak=0,
        gt_ls_Bl=None,
        cfg_list=3,
        tau_list=0.5,
        scale_schedule=scales,
        cfg_insertion_layer=[args.cfg_insertion_layer],
        vae_type=args.vae_type,
        sampling_per_bits=args.sampling_per_bits,
    )
    print(sparvar.explain(infinity))
    Image.fromarray(image.flip(-1).cpu().numpy()).save(asked.out)  # Infinity gives [H, W, 3] in blue, green, red
    print(f"written to {asked.out}")


if __name__ == "__main__":
    main()
