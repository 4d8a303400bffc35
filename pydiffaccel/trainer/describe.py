"""A run's options in words, for the plan that is printed before training."""

from __future__ import annotations

from pydiffaccel.trainer.config import TrainOptions

__all__ = ["describe_condition", "describe_coupling", "describe_kl", "describe_process", "describe_schedules"]


def describe_process(options: TrainOptions, prediction_type: str) -> str:
    """The forward process, as "vp on continuous linear levels, predicts epsilon"."""
    text: str = options.forward
    if options.forward == "kl":
        haar = " of basis haar" if options.kl_basis == "haar" else ""
        text += f" with {options.kl_terms} terms{haar}"
    if options.noise_schedule != "linear":
        text += f" on {options.noise_schedule.replace('_', ' ')} levels"
    if not options.kl_renormalise:
        text += ", not renormalised"
    text += f", predicts {prediction_type}"
    weights = {
        "none": "",
        "min_snr": f", min-SNR weights of gamma {options.min_snr_gamma:g}",
        "p2": f", P2 weights of gamma {options.p2_gamma:g} and k {options.p2_k:g}",
        "change_aware": f", change-aware weights of ceiling {options.change_ceiling:g}",
    }
    return text + weights.get(options.weighting, f", weights {options.weighting}")


def describe_schedules(options: TrainOptions) -> list[str]:
    """Density of the training times, curriculum and momentum decay, where there are any."""
    parts = []
    if options.timestep_density != "uniform":
        density = {
            "logit_normal": f"logit-normal times of mean {options.logit_mean:g} and width {options.logit_std:g}",
            "mode": f"mode times of scale {options.mode_scale:g}",
            "cosmap": "CosMap times",
            "speed": f"asymmetric times, {options.speed_suppression:g} to 1 before the noise level has converged",
        }[options.timestep_density]
        parts.append(density + (" with importance weights" if options.density_importance else ""))
    if options.curriculum:
        importance = " with importance weights" if options.curriculum_importance else ""
        gaussian = f"centre {options.curriculum_mu:g} and width {options.curriculum_width:g}"
        parts.append(f"curriculum of weight {options.curriculum_weight:g}, {gaussian}{importance}")
    if options.momentum_decay != "off":
        kind = {"both": "", "lr_only": ", the learning rate alone", "beta_only": " without compensation"}
        strength = f"momentum decay of strength {options.momentum_decay_strength:g}"
        parts.append(strength + kind[options.momentum_decay])
    return parts


def describe_kl(options: TrainOptions) -> str:
    """The loss of KL diffusion, as "component, 2 of 4 terms at random"."""
    text = {
        "component": f"component, {options.kl_terms} terms as noises of their own",
        "schedule": "schedule, the sum of the terms as one noise",
        "recombined": f"recombined, the errors of {options.kl_terms} terms summed (biased)",
        "path": f"path, one smooth path per image at {options.path_times} times",
    }[options.kl_mode]
    if options.kl_partial is not None:
        text = f"component, {options.kl_partial} of {options.kl_terms} terms at random"
    if options.kl_weights != "coefficient":
        text += f", {options.kl_weights} weights"
    if options.kl_draws != "iid":
        text += f", {options.kl_draws} draws"
    if options.kl_microbatch is not None:
        text += f", at most {options.kl_microbatch:,} evaluations at once"
    return text


def describe_coupling(options: TrainOptions) -> str:
    """The coupling, as "knn, the nearest of 4 noises (l2)"."""
    images, window = options.train_batch_size, options.coupling_window
    paired = f"{images} images" if window == 1 else f"{window} batches of {images} images as one"
    text = {
        "none": "none (independent noise)",
        "hungarian": f"hungarian, {paired} against {options.hungarian_pool or window * images} noises",
        "sinkhorn": f"sinkhorn, {paired}, epsilon {options.sinkhorn_epsilon:g}, "
        f"{options.sinkhorn_iterations} iterations, {options.sinkhorn_output}",
        "queue": f"queue, {images} images against {images} fresh and {options.queue_size} waiting noises",
        "knn": f"knn, the nearest of {options.knn_k} noises ({options.knn_metric})",
    }[options.coupling]
    if options.class_conditional and options.coupling == "hungarian":
        text += f", {options.hungarian_labels} classes"
    if options.coupling == "hungarian" and options.hungarian_project is not None:
        text += f", searched in {options.hungarian_project} dimensions ({options.hungarian_projection})"
    if options.coupling == "sinkhorn" and options.sinkhorn_project is not None:
        text += f", searched in {options.sinkhorn_project} dimensions"
    if options.coupling != "none" and options.coupling_start_step:
        text += f", from step {options.coupling_start_step:,} on"
    return text


def describe_condition(options: TrainOptions) -> str:
    """What the network is told beside the time, as "the class, in 0.1 of all cases none"; empty if nothing."""
    if not options.class_conditional:
        return ""
    dropout = options.conditioning_dropout_prob
    return f"the class, in {dropout:.4g} of all cases none" if dropout else "the class"
