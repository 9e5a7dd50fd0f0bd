"""gpt-oss: sinks, windows in every other layer, biased experts with a clipped gate."""

from rfjax.models.arch import QKV, ArchSpec, Mixture, Window

SPEC = ArchSpec(
    name="gpt-oss",
    pairing="half",
    biases=frozenset(
        {"attn_output", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}
    ),
    optional_biases=QKV,
    window=Window(period=2),
    sinks=True,
    activation="swiglu_oai",
    mixture=Mixture(
        gating="softmax_of_chosen",
        normalize=False,
        width="stated",
        keys=frozenset({"expert_weights_scale"}),
    ),
    renames=(("ffn_norm", "post_attention_norm"),),
    keys=frozenset({"rope.freq_base_swa"}),
)
