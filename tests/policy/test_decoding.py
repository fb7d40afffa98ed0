"""Decoding: the choice of tokens, this project's forward pass of one token, and rows that leave the batch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import completions_of, random_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.cache_utils import DynamicCache

import rollout
from policy import decoding, logprobs

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def far_from_uniform(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(4)
            elif parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))  # a norm's weight of 1 would hide that it is left out
    return model.eval()


def model_of(name):
    torch.manual_seed(0)
    if name == "qwen2, biases":
        model = random_model()
        with torch.no_grad():
            for layer in model.base_model.layers:
                for part in ("q_proj", "k_proj", "v_proj"):
                    getattr(layer.self_attn, part).bias.normal_()
        return far_from_uniform(model)
    if name == "llama":
        model = far_from_uniform(LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)))
        with torch.no_grad():  # they begin as 0, which would hide that one is left out
            for bias in (parameter for name, parameter in model.named_parameters() if name.endswith("bias")):
                bias.normal_(std=0.5)
        return model
    if name == "llama, scaled rotation":
        rotation = {
            "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        }  # fmt: skip
        return far_from_uniform(LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=rotation)))
    if name == "mistral":
        return far_from_uniform(MistralForCausalLM(MistralConfig(**SIZES, head_dim=16, sliding_window=None)))
    return far_from_uniform(Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)))


NAMES = ["qwen2, biases", "llama", "llama, scaled rotation", "mistral", "qwen3"]


# --- the choice --------------------------------------------------------------------------------------------------


def test_sampled_frequencies_are_the_softmax():
    """Chi-square over 40,000 draws from ten tokens; 33.7 is the 0.9999 quantile at 9 degrees of freedom."""
    logits = torch.linspace(-2, 2, 10).expand(40_000, 10)
    keys = torch.tensor([rollout.noise_key(0, i) for i in range(40_000)])
    for position in (0, 1, 511):
        chosen, logps = decoding.choose_tokens(
            logits, decoding.uniform_noise(keys[:, None], torch.tensor([position])).squeeze(1), 0.7, 1.0
        )
        expected = (logits[0] / 0.7).softmax(-1) * 40_000
        counts = torch.bincount(chosen, minlength=10)
        assert float(((counts - expected) ** 2 / expected).sum()) < 33.7
        torch.testing.assert_close(logps, (logits / 0.7).log_softmax(-1).gather(1, chosen[:, None]).squeeze(1))


def test_noise_is_uniform_and_independent_between_rows_and_positions():
    keys = torch.tensor([rollout.noise_key("a", i) for i in range(2_000)])
    noise = decoding.uniform_noise(keys[:, None], torch.arange(50)).T
    assert float(noise.min()) >= 0 and float(noise.max()) < 1
    assert abs(float(noise.mean()) - 0.5) < 0.005 and abs(float(noise.var()) - 1 / 12) < 0.002
    assert abs(float(torch.corrcoef(noise).triu(1).sum()) / 1225) < 0.005


def test_tokens_of_probability_zero_are_never_chosen():
    """Also at the largest noise there is, and with trailing words that the softmax gives nothing."""
    logits = torch.full((3, 1000), -torch.inf)
    logits[:, 100:200] = 0.0
    noise = torch.tensor([0.0, 0.5, 1 - 2**-23])
    chosen, _ = decoding.choose_tokens(logits, noise, 1.0, 1.0)
    assert chosen.tolist() == [100, 150, 199]


def test_top_p_keeps_the_likeliest_tokens_that_reach_it():
    """Probabilities 0.5, 0.3, 0.2 at top_p 0.7: the first two; log-probabilities stay those of the full softmax."""
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(2_000, 3)
    keys = torch.tensor([rollout.noise_key(i) for i in range(2_000)])
    chosen, logps = decoding.choose_tokens(
        logits, decoding.uniform_noise(keys[:, None], torch.tensor([0])).squeeze(1), 1.0, 0.7
    )
    assert set(chosen.tolist()) == {1, 2}
    assert abs(float((chosen == 1).float().mean()) - 0.625) < 0.04
    torch.testing.assert_close(logps[chosen == 1][0].exp(), torch.tensor(0.5))


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_p": 0.9}])
@pytest.mark.parametrize("fast", [True, False])
def test_a_model_that_gives_nan_ends_sampling_in_a_sentence(model, tokenizer, monkeypatch, fast, options):
    """And not in an index out of bounds, which on a GPU would end the process; also where NaN comes later."""
    monkeypatch.setattr(decoding, "FAST_MODELS", decoding.FAST_MODELS if fast else ())
    rollout.sample(model, tokenizer, ["a+b="], 2, max_new_tokens=20, seed=0, **options)
    seen = []

    def head(hidden, plain=model.lm_head.forward):
        seen.append(plain(hidden))
        return seen[-1] * (torch.nan if len(seen) == 4 else 1)

    monkeypatch.setattr(model.lm_head, "forward", head)
    with pytest.raises(FloatingPointError, match=r"the model gives NaN: .* learning rate"):
        rollout.sample(model, tokenizer, ["a+b="], 2, max_new_tokens=20, seed=0, **options)
    assert len(seen) <= decoding.STOP_CHECK


# --- one token for every row -------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_own_forward_pass_equals_the_models_own_before_and_after_rows_leave(name, shared, monkeypatch):
    """With prompts shared by their answers, and copied to each.

    Two prompts of unlike length, three answers each; then rows 1, 3 and 4 go on; then only the second prompt's."""
    monkeypatch.setattr(decoding, "SHARED_PROMPT", 0 if shared else 1_000)
    model = model_of(name)
    assert decoding.is_fast(model)
    prompts = [[5, 6, 7, 8, 9], [10, 11]]
    mask = torch.tensor([[True] * 5, [False] * 3 + [True] * 2])
    ids = torch.tensor([prompts[0], [0] * 3 + prompts[1]])
    cache = DynamicCache(config=model.config)
    decoding.hidden_states(model, ids, mask, cache)
    steps = decoding.FastSteps(model, cache, mask, 3, 12)
    rows, answers = [0, 1, 2, 3, 4, 5], [[] for _ in range(6)]
    generator = torch.Generator().manual_seed(1)
    for position in range(12):
        tokens = torch.randint(2, 64, (len(rows),), generator=generator)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            answers[row].append(token)
        ours = steps(tokens, position)
        for row, state in zip(rows, ours, strict=True):
            whole = torch.tensor([prompts[row // 3] + answers[row]])
            expected = decoding.hidden_states(model, whole, torch.ones_like(whole, dtype=torch.bool))[0, -1]
            torch.testing.assert_close(state, expected, atol=1e-4, rtol=1e-3)
        for left, kept in ((3, [1, 3, 4]), (7, [1, 2])):
            if position == left:
                steps.keep(torch.tensor(kept), position)
                rows = [rows[i] for i in kept]


@pytest.mark.parametrize("name", NAMES)
def test_answers_of_the_own_forward_pass_are_those_of_the_models_own(name, tokenizer, monkeypatch):
    model = model_of(name)
    options = {"max_new_tokens": 40, "temperature": 0.9, "seed": 3}
    fast = rollout.sample(model, tokenizer, ["a+b=", "what is 2*(3+4)?", "x"], 5, **options)
    monkeypatch.setattr(decoding, "FAST_MODELS", ())
    plain = rollout.sample(model, tokenizer, ["a+b=", "what is 2*(3+4)?", "x"], 5, **options)
    assert fast.texts == plain.texts
    torch.testing.assert_close(fast.logps, plain.logps, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_beginning_that_prompts_share_changes_no_answer_and_is_computed_once(name, fast, tokenizer, monkeypatch):
    """Behind it prompts of unlike length, which are padded there; one is the beginning of another."""
    model = model_of(name)
    if not fast:
        monkeypatch.setattr(decoding, "FAST_MODELS", ())
    begin = "1+1=2 2+2=4 "
    prompts, options = [begin, begin + "9*9=", begin + "a"], {"max_new_tokens": 20, "temperature": 0.9, "seed": 3}
    expected = rollout.sample(model, tokenizer, prompts, 4, **options)
    monkeypatch.setattr(logprobs, "SHARED_PREFIX", 5)
    sizes, plain = [], decoding.hidden_states
    watched = lambda model, ids, *rest: sizes.append(tuple(ids.shape)) or plain(model, ids, *rest)  # noqa: E731
    monkeypatch.setattr(decoding, "hidden_states", watched)
    found = rollout.sample(model, tokenizer, prompts, 4, **options)
    assert sizes[:2] == [(1, len(begin) - 1), (3, 5)], "the prefix once, then what is left of each prompt"
    assert found.texts == expected.texts
    torch.testing.assert_close(found.logps, expected.logps, atol=1e-4, rtol=1e-3)


def test_under_a_sliding_window_each_prompt_is_computed_whole(tokenizer, monkeypatch):
    """Its window counts places, and a row that is padded behind a shared beginning has some that hold nothing."""
    config = MistralConfig(**SIZES, head_dim=16, sliding_window=8)
    torch.manual_seed(0)
    model = far_from_uniform(MistralForCausalLM(config))
    prompts, options = ["1+1=2 2+2=4 9", "1+1=2 2+2=4 9*9*9*9="], {"max_new_tokens": 10, "seed": 3}
    monkeypatch.setattr(logprobs, "SHARED_PREFIX", 5)
    together = rollout.sample(model, tokenizer, prompts, 2, **options)
    alone = [text for prompt in prompts for text in rollout.sample(model, tokenizer, [prompt], 2, **options).texts]
    assert together.texts == alone


def test_architectures_that_the_own_pass_does_not_compute_take_the_models_own(tokenizer):
    """Sliding windows, a rotation that depends on the length, adapters in place of linear maps, another family."""
    windowed = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8))
    stretched = LlamaForCausalLM(
        LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    )
    adapted = random_model()

    class Adapter(torch.nn.Linear):
        pass

    adapted.base_model.layers[0].self_attn.q_proj = Adapter(32, 32)
    other = Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8))
    for model in (windowed, stretched, adapted, other):
        assert not decoding.is_fast(model)
        sampled = rollout.sample(model.eval(), tokenizer, ["a+b=", "xy"], 2, max_new_tokens=12, seed=0)
        logps, _ = rollout.token_logps(model, sampled.input_ids, sampled.attention_mask, sampled.response_mask)
        torch.testing.assert_close(sampled.logps, logps.detach(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_another_activation_takes_the_models_own_pass(activation):
    assert not decoding.is_fast(LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act=activation)))
    assert decoding.is_fast(LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="silu")))


def test_a_rotation_of_long_texts_takes_the_models_own_pass():
    rotation = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    assert not decoding.is_fast(LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=rotation)))


def test_a_cache_of_one_sequence_by_hand(model):
    """Two layers, two key-value heads of size 8, keys and values, and a hidden state of 32: 96 numbers a token."""
    assert decoding.cache_bytes(model, 10) == 4 * 10 * (2 * 2 * 2 * 8 + 32)


def test_sampled_answers_follow_the_exact_distribution_of_the_model(tokenizer):
    """Chi-square over the first two tokens of 20,000 answers against the softmax of full forward passes.

    Pairs expected fewer than 5 times are one cell. The bound is the 0.9999 quantile of chi-square, by Wilson and
    Hilferty's approximation.
    """
    model = model_of("llama")
    count, temperature = 20_000, 0.7
    sampled = rollout.sample(
        model, tokenizer, ["a+b="], count, max_new_tokens=2, temperature=temperature, top_p=1.0, seed=11
    )
    prompt = torch.tensor(rollout.encode_prompt(tokenizer, "a+b="))
    with torch.no_grad():
        first = (model(input_ids=prompt[None]).logits[0, -1] / temperature).softmax(-1)
        continued = torch.cat([prompt.expand(64, -1), torch.arange(64)[:, None]], dim=1)
        second = (model(input_ids=continued).logits[:, -1] / temperature).softmax(-1)
    expected = first[:, None] * second * count
    expected[1] = 0.0  # after an EOS there is no second token
    pairs = torch.zeros(64, 64)
    ended = 0
    for answer in completions_of(sampled):
        if answer == [1]:
            ended += 1
        else:
            pairs[answer[0], answer[1]] += 1
    often = expected >= 5
    cells = [*zip(pairs[often].tolist(), expected[often].tolist(), strict=True)]
    cells += [(float(pairs[~often].sum()), float(expected[~often].sum())), (ended, float(first[1]) * count)]
    cells = [(seen, wanted) for seen, wanted in cells if wanted >= 5]
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    freedom = len(cells) - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.72 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert freedom >= 20
    assert statistic < bound


@pytest.mark.parametrize("name", ["qwen2, biases", "qwen3"])
def test_shapes_of_cuda_graphs_give_the_same_answers(name, tokenizer, monkeypatch):
    """Halved rows, filled with ended ones, and places read in blocks, as on a GPU, but for the graphs themselves."""
    model = model_of(name)
    prompts = ["a+b=", "what is 2*(3+4)?", "x"]
    options = {"max_new_tokens": 50, "temperature": 0.9, "seed": 3, "keep_hidden": True}
    expected = rollout.sample(model, tokenizer, prompts, 5, **options)
    shapes = []

    def stand_in(memory, step, plain, *inputs):
        shapes.append((len(inputs[0]), step.args[0]))
        return plain

    def with_graphs(self, *arguments, plain=decoding.FastSteps.__init__):
        plain(self, *arguments)
        self.use_graphs = True
        for room in (room for pair in self.caches for room in pair):
            room[:, :, self.copied_prompt :] = 0.0

    monkeypatch.setattr(decoding, "captured", stand_in)
    monkeypatch.setattr(decoding, "GraphMemory", lambda device: None)
    monkeypatch.setattr(decoding, "GRAPH_PLACES", 16)
    monkeypatch.setattr(decoding, "GRAPH_ROWS", 2)
    monkeypatch.setattr(decoding.FastSteps, "__init__", with_graphs)
    found = rollout.sample(model, tokenizer, prompts, 5, **options)
    assert found.texts == expected.texts
    torch.testing.assert_close(found.logps, expected.logps, atol=1e-4, rtol=1e-3)
    for ours, plain in zip(found.hidden, expected.hidden, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-3)
    assert min(shapes)[0] < 15 and len(shapes) == len(set(shapes)) <= 12


# --- whole answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
def test_kept_hidden_states_are_those_that_the_tokens_were_chosen_from(model, tokenizer, monkeypatch, fast):
    monkeypatch.setattr(decoding, "FAST_MODELS", decoding.FAST_MODELS if fast else ())
    sampled = rollout.sample(model, tokenizer, ["a+b=", "xyz"], 4, max_new_tokens=30, seed=3, keep_hidden=True)
    states = decoding.hidden_states(model, sampled.input_ids, sampled.attention_mask)
    for row in range(8):
        expected = states[row, :-1][sampled.response_mask[row, 1:]]
        torch.testing.assert_close(sampled.hidden[row], expected.detach(), atol=1e-4, rtol=1e-3)


def test_hidden_states_are_not_kept_unless_asked_for(model, tokenizer):
    assert rollout.sample(model, tokenizer, ["a"], 2, max_new_tokens=3).hidden == [None, None]


def test_a_cache_of_the_models_own_pass_grows_by_blocks(tokenizer):
    """Not with every token: that copies the whole cache each time, five times slower at 1,200 tokens."""
    model = far_from_uniform(Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, layer_types=["full_attention"] * 2)))
    cache = decoding.new_cache(model)
    rooms = set()
    mask = torch.ones(2, 0, dtype=torch.bool)
    with torch.no_grad():
        for _ in range(150):
            mask = torch.ones(2, mask.shape[1] + 1, dtype=torch.bool)
            decoding.hidden_states(model, torch.full((2, 1), 5), mask, cache)
            rooms.add(cache.layers[0].room[0].data_ptr())
    assert cache.get_seq_length() == 150 and len(rooms) <= 3


def test_progress_tells_of_about_as_many_tokens_as_are_made(model, tokenizer):
    told = []
    sampled = rollout.sample(model, tokenizer, ["a+b=", "xyz"], 8, max_new_tokens=40, seed=3, progress=told.append)
    assert sum(told) == pytest.approx(int(sampled.lengths.sum()), rel=0.2)


def test_rows_that_ended_stop_costing(model, tokenizer, monkeypatch):
    """A batch whose answers end after 1 to 100 tokens runs fewer rows than its size times its longest answer."""
    rows = []
    step = decoding.FastSteps.step

    def counted(self, places, layer, tokens, *rest):
        rows.append(len(tokens))
        return step(self, places, layer, tokens, *rest)

    monkeypatch.setattr(decoding.FastSteps, "step", counted)
    sampled = rollout.sample(model, tokenizer, ["a+b=", "xyz", "1", "2"], 16, max_new_tokens=100, seed=3)
    lengths = sampled.lengths
    assert int(lengths.sum()) < 0.7 * len(lengths) * int(lengths.max())
    assert sum(rows) < 1.2 * int(lengths.sum())


def test_there_is_always_room_for_one_sequence(model, monkeypatch):
    """Else nothing could be sampled: half a sequence of the budget, and two and a half."""
    monkeypatch.setattr(decoding, "CACHE_BYTES", decoding.cache_bytes(model, 10) // 2)
    assert decoding.rows_at_once(model, 10) == 1
    monkeypatch.setattr(decoding, "CACHE_BYTES", decoding.cache_bytes(model, 10) * 5 // 2)
    assert decoding.rows_at_once(model, 10) == 2


def test_room_on_a_gpu_is_half_of_what_is_free_with_the_logits_of_a_token(model, monkeypatch):
    """Free 1,200 kB, and 400 kB that PyTorch holds and does not use: 800 kB. A row of ten tokens has 1,920 bytes of
    cache and states in bf16, and with a vocabulary of 1,000 there are 24,000 bytes while its next token is chosen."""
    on_gpu = SimpleNamespace(device=torch.device("cuda"), config=model.config)
    model.config.vocab_size = 1_000
    for name, value in (("reserved", 500_000), ("allocated", 100_000)):
        monkeypatch.setattr(torch.cuda, f"memory_{name}", lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_200_000, 2_000_000))
    assert decoding.cache_bytes(on_gpu, 10) == 2 * 960
    assert decoding.rows_at_once(on_gpu, 10) == 800_000 // (1_920 + 24_000) == 30


@pytest.mark.parametrize(("going", "rows"), [(256, 256), (129, 256), (128, 128), (17, 32), (16, 16), (1, 16)])
def test_with_graphs_rows_are_halved_as_long_as_that_saves_time(going, rows):
    """Each number of rows has to be captured. Below 16, a step takes as long as for one row."""
    steps = SimpleNamespace(use_graphs=True, rows=256)
    assert decoding.FastSteps.rows_to_keep(steps, going) == rows
    assert decoding.FastSteps.rows_to_keep(SimpleNamespace(use_graphs=True, rows=12), 1) == 12


@pytest.mark.parametrize(("going", "rows"), [(100, 100), (86, 100), (85, 85), (1, 1)])
def test_rows_leave_where_that_saves_more_than_moving_the_cache_costs(going, rows):
    """Of 100 rows, at least 15 must have ended."""
    assert decoding.rows_left(going, 100) == rows
