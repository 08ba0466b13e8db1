import numpy as np
import pytest
import torch

from spatia_model.generator import flow
from spatia_model.generator.sampler import SOLVERS, combine_guidance, denoise, draw_noise, euler_sigmas, model_fn, unipc_schedule
from tests.spatia_model.generator.test_transformer import SEED, build, inputs, largest

SHAPE = (2, 3, 5, 4, 4)


def noise(seed=SEED, shape=SHAPE):
    return draw_noise(shape, torch.Generator().manual_seed(seed))


def plain_unipc(velocities, x, steps, shift):
    """Order-2 bh2 UniPC in x0 form, stated afresh from the paper's multistep formulas, in double precision."""
    levels = np.linspace(0.999, 0, steps + 1)[:-1]
    levels = [*(shift * levels / (1 + (shift - 1) * levels)), 0.0]
    lam = [np.log((1 - s) / s) if s else np.inf for s in levels]
    x, states, samples, last, orders = x.double(), [], [], None, []
    for i in range(steps):
        sample = x - levels[i] * velocities[i].double()
        if i:  # corrector: redo the last step, now knowing the sample at its end
            h = lam[i] - lam[i - 1]
            b = np.expm1(-h)
            first = b / -h - 1
            start = levels[i] / levels[i - 1] * last - (1 - levels[i]) * b * samples[-1]
            change = sample - samples[-1]
            if orders[-1] == 1:
                x = start - (1 - levels[i]) * b * 0.5 * change
            else:
                r = (lam[i - 2] - lam[i - 1]) / h
                second = 2 * (first / -h - 0.5)
                rho = np.linalg.solve([[1, 1], [r, 1]], [first / b, second / b])
                x = start - (1 - levels[i]) * b * (rho[0] * (samples[-2] - samples[-1]) / r + rho[1] * change)
        samples.append(sample)
        last = x
        orders.append(min(2, steps - i, i + 1))
        h = lam[i + 1] - lam[i]
        b = np.expm1(-h)
        x = levels[i + 1] / levels[i] * x - (1 - levels[i + 1]) * b * samples[-1]
        if orders[-1] == 2:
            r = (lam[i - 1] - lam[i]) / h
            x = x - (1 - levels[i + 1]) * b * 0.5 * (samples[-2] - samples[-1]) / r
        states.append(x)
    return states


@pytest.mark.parametrize(("steps", "shift"), [(1, 5.0), (2, 5.0), (7, 3.0), (40, 5.0)])
def test_unipc_equals_its_plain_statement(steps, shift):
    velocities = [noise(SEED + i) for i in range(steps)]
    states, done, calls = [], [], []

    def predict(latents, times):
        calls.append(times)
        return velocities[len(calls) - 1]

    found = denoise(predict, noise(), steps=steps, shift=shift, observe=lambda i, x: states.append(x), progress=lambda *a: done.append(a))
    for state, expected in zip(states, plain_unipc(velocities, noise(), steps, shift), strict=True):
        assert largest(state, expected) < 2e-5
    assert torch.equal(found, states[-1])
    assert done == [(i + 1, steps) for i in range(steps)]
    levels = np.linspace(0.999, 0, steps + 1)[:-1]
    expected = (1000 * shift * levels / (1 + (shift - 1) * levels)).astype(np.int64)
    assert [int(times[0, 0]) for times in calls] == expected.tolist() == unipc_schedule(steps, shift).timesteps.tolist()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", ["velocity", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 8, 40])
def test_a_perfect_model_is_followed_to_the_data(solver, prediction, steps):
    data = noise(SEED + 9)

    def predict(latents, times):
        sigma = flow._over(times / 1000, latents)
        return data if prediction == "sample" else (latents - data) / sigma.clamp_min(1e-3)

    found = denoise(predict, noise(), steps=steps, shift=3.0, solver=solver, prediction=prediction)
    # UniPC's network sees whole-number timesteps, so a model that trusts them is off by up to 1/1000 of the noise
    assert largest(found, data) < (1e-4 if prediction == "sample" or solver == "euler" else 0.05)


@pytest.mark.parametrize("solver", SOLVERS)
def test_known_frames_and_references_are_put_back_after_every_step(solver):
    known, references = noise(1, (2, 3, 2, 4, 4)), noise(2, (2, 3, 3, 4, 4))
    clean, seen = torch.cat([references, known], 2), []

    def predict(latents, times):
        assert latents.shape == (2, 3, 8, 4, 4)
        assert torch.equal(latents[:, :, :5], clean)
        assert not times[:, :5].any()
        assert (times[:, 5:] == times[0, 5]).all() and times[0, 5] > 0
        return torch.ones_like(latents)

    found = denoise(predict, noise(), known, references, steps=3, solver=solver, observe=lambda i, x: seen.append(x))
    assert found.shape == SHAPE
    assert torch.equal(found[:, :, :2], known)
    assert len(seen) == 3
    assert all(torch.equal(x[:, :, :5], clean) for x in seen)
    assert torch.equal(seen[-1][:, :, 3:], found)
    assert largest(found[:, :, 2:], noise()[:, :, 2:]) > 0.5


def test_euler_is_the_plain_ode_and_renoise_draws_from_the_generators():
    velocities = [noise(SEED + i) for i in range(4)]
    sigmas = euler_sigmas(4, 2.0)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert torch.allclose(sigmas[2], torch.tensor(2 / 3, dtype=torch.float64))
    expected = noise().double()
    for i in range(4):
        expected = expected + (sigmas[i + 1] - sigmas[i]) * velocities[i].double()
    calls = iter(velocities)
    assert largest(denoise(lambda x, t: next(calls), noise(), steps=4, shift=2.0, solver="euler"), expected) < 1e-5

    def run(renoise, generator, size=2):
        data = noise(5)[:size]
        return denoise(
            lambda x, t: 0.5 * data, noise()[:size], steps=2, shift=1.0, solver="euler", prediction="sample", renoise=renoise,
            generator=generator, observe=lambda i, x: states.append(x),
        )  # fmt: skip

    states: list[torch.Tensor] = []
    run(1.0, torch.Generator().manual_seed(3))
    fresh = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    assert largest(states[0], 0.5 * 0.5 * noise(5) + 0.5 * fresh) < 1e-6
    states.clear()
    run(0.6, torch.Generator().manual_seed(3))
    assert largest(states[0], 0.25 * noise(5) + 0.5 * (0.8 * noise() + 0.6 * fresh)) < 1e-6
    # one generator per sample: a sample's noise doesn't depend on its company
    states.clear()
    run(1.0, [torch.Generator().manual_seed(3), torch.Generator().manual_seed(4)])
    run(1.0, [torch.Generator().manual_seed(3)], 1)
    assert torch.equal(states[0][:1], states[2])
    assert largest(states[0][1:], states[0][:1]) > 0.1


def test_guidance_and_its_batched_form():
    model = build(out_channels=3)
    latents, _, context, control = inputs(references=1)
    positive = model.prepare(context, control, 1)
    negative = model.prepare(context * 0.5, control, 1)
    times = torch.full((2, 4), 500.0)
    times[:, :2] = 0
    with torch.no_grad():
        a, b = (model(latents, times, conditions=c) for c in (positive, negative))
        expected = b + 3.5 * (a - b)
        assert largest(combine_guidance(a, b, 3.5), expected) == 0
        assert largest(a, b) > 1e-3
        for batched in (False, True):
            assert largest(model_fn(model, positive, negative, 3.5, batched)(latents, times), expected) < 1e-5
        assert largest(model_fn(model, positive, negative, 1.0)(latents, times), a) == 0
    arguments = {"known_latents": latents[:, :, 1:2], "reference_latents": latents[:, :, :1], "steps": 3, "shift": 5.0}
    start = noise(shape=(2, 3, 3, 4, 6))
    through_fn = denoise(model_fn(model, positive, negative, 3.5, True), start, **arguments)
    pair = model_fn(model, positive), model_fn(model, negative)
    assert largest(denoise(pair[0], start, guidance=3.5, negative_fn=pair[1], **arguments), through_fn) < 1e-5
    assert largest(denoise(pair[0], start, **arguments), through_fn) > 1e-3
    with pytest.raises(ValueError, match="negative"):
        model_fn(model, positive, None, 2.0)


def test_bad_arguments_are_refused():
    def call(**changes):
        arguments = {"noise": noise(), "steps": 2, "solver": "euler", **changes}
        denoise(lambda x, t: x, **arguments)

    call()
    cases = [
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "steps"),
        ({"steps": 2.0}, "steps"),
        ({"steps": True}, "steps"),
        ({"shift": 0.0}, "shift"),
        ({"solver": "heun"}, "solver"),
        ({"prediction": "noise"}, "prediction"),
        ({"guidance": 2.0}, "negative_fn"),
        ({"renoise": 0.5}, "generator"),
        ({"renoise": 1.5, "generator": torch.Generator()}, "renoise"),
        ({"renoise": 0.5, "generator": torch.Generator(), "solver": "unipc"}, "renoise"),
        ({"renoise": 0.5, "generator": [torch.Generator()] * 3}, "generators"),
        ({"noise": noise()[0]}, "noise"),
        ({"known_latents": noise()}, "at least one frame"),
        ({"known_latents": noise()[:1, :, :1]}, "known_latents"),
        ({"reference_latents": noise()[:, :2]}, "reference_latents"),
    ]
    for changes, word in cases:
        with pytest.raises(ValueError, match=word):
            call(**changes)
    assert len(unipc_schedule(1000, 5.0).timesteps) == 1000


def test_flow_conventions():
    x0, x1, t = noise(1), noise(2), torch.tensor([0.25, 0.9])
    x_t = flow.interpolate(x0, x1, t)
    assert largest(x_t[0], 0.75 * x0[0] + 0.25 * x1[0]) < 1e-6
    velocity = flow.velocity_target(x0, x1)
    assert torch.equal(velocity, x0 - x1)
    assert torch.allclose(flow.timestep(t), torch.tensor([750.0, 100.0]))
    assert largest(flow.velocity_to_sample(x_t, velocity, t), x1) < 1e-6
    assert largest(flow.sample_to_velocity(x_t, x1, t), velocity) < 1e-5
    frames = torch.tensor([[1.0, 0.5, 0.5, 0.5, 0.0]] * 2)
    per_frame = flow.interpolate(x0, x1, frames)
    assert torch.equal(per_frame[:, :, 0], x1[:, :, 0])
    assert torch.equal(per_frame[:, :, 4], x0[:, :, 4])
    assert torch.isfinite(flow.sample_to_velocity(per_frame, x1, frames)).all()
    # the sampler's step from this velocity moves towards the data
    assert largest(denoise(lambda x, time: velocity, x0, steps=3, shift=1.0, solver="euler"), x1) < 1e-5


def test_training_times():
    generator = torch.Generator().manual_seed(SEED)
    t = flow.sample_times(20_000, generator)
    assert t.shape == (20_000,)
    assert t.min() > 0 and t.max() < 1
    logit = torch.log(t / (1 - t))
    assert abs(logit.mean()) < 0.05 and abs(logit.std() - 1) < 0.05
    shifted = flow.sample_times(20_000, generator, mean=1.0, std=0.5)
    logit = torch.log(shifted / (1 - shifted))
    assert abs(logit.mean() - 1) < 0.05 and abs(logit.std() - 0.5) < 0.05
    even = flow.sample_times(20_000, generator, "uniform")
    assert abs(even.mean() - 0.5) < 0.02 and abs(even.var() - 1 / 12) < 0.01
    assert flow.sample_times(20_000, generator, "uniform", shift=5.0).mean() < 0.35  # more noise
    same = [flow.sample_times(4, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*same)
    with pytest.raises(ValueError, match="distribution"):
        flow.sample_times(2, generator, "normal")
    with pytest.raises(ValueError, match="shift"):
        flow.sample_times(2, generator, shift=-1.0)


def test_stopping_early_gives_the_state_at_that_step():
    noise = torch.randn(1, 2, 3, 2, 2, generator=torch.Generator().manual_seed(SEED))
    states = []
    options = {"steps": 4, "shift": 1.0, "solver": "euler", "prediction": "sample"}

    def model(x, times):
        return 0.3 * x + times.mean() / 1000

    whole = denoise(model, noise, observe=lambda step, x: states.append(x), **options)
    for stop in range(1, 5):
        assert torch.equal(denoise(model, noise, stop=stop, **options), states[stop - 1])
    assert torch.equal(whole, states[-1])
    for stop in (0, 5):
        with pytest.raises(ValueError, match="stop"):
            denoise(model, noise, stop=stop, **options)
