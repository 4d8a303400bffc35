"""A run's options in words, for the plan that is printed before training."""

from __future__ import annotations

from pydiffaccel.trainer.config import TrainOptions

__all__ = ["describe_coupling", "describe_kl", "describe_process"]


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
    return text if options.snr_gamma is None else f"{text}, min-SNR weights of gamma {options.snr_gamma:g}"


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
    images = options.train_batch_size
    text = {
        "none": "none (independent noise)",
        "hungarian": f"hungarian, {images} images against {options.hungarian_pool or images} noises",
        "sinkhorn": f"sinkhorn, {images} images, epsilon {options.sinkhorn_epsilon:g}, "
        f"{options.sinkhorn_iterations} iterations, {options.sinkhorn_output}",
        "queue": f"queue, {images} images against {images} fresh and {options.queue_size} waiting noises",
        "knn": f"knn, the nearest of {options.knn_k} noises ({options.knn_metric})",
    }[options.coupling]
    if options.coupling == "hungarian" and options.hungarian_project is not None:
        text += f", searched in {options.hungarian_project} dimensions ({options.hungarian_projection})"
    if options.coupling == "sinkhorn" and options.sinkhorn_project is not None:
        text += f", searched in {options.sinkhorn_project} dimensions"
    if options.coupling != "none" and options.coupling_start_step:
        text += f", from step {options.coupling_start_step:,} on"
    return text
