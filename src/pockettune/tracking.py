"""Experiment trackers, kept from failing the run they watch."""

import logging

TRACKERS = ("none", "swanlab", "trackio", "wandb", "tensorboard")


def callbacks(report_to: str, folder: str) -> list:
    """Return the tracker's own callback in a list, or nothing for "none" or a tracker that will not start.

    SwanLab is started offline, its files under `folder`, unless the script started it before. Raises ValueError for
    another name.
    """
    if report_to not in TRACKERS:
        raise ValueError(f"report_to is {report_to!r}, expected one of {', '.join(TRACKERS)}")
    if report_to == "none":
        return []
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        if report_to == "swanlab":
            import swanlab

            try:
                swanlab.get_run()
            except RuntimeError:  # none yet; left to its callback, it would ask for an account
                swanlab.init(mode="offline", log_dir=f"{folder}/swanlab")
        tracker = get_reporting_integration_callbacks([report_to])[0]()
    except Exception as error:  # not installed, no account, no disk: each tracker has errors of its own
        _warn(report_to, error)
        return []
    failures: list[Exception] = []
    for name in dir(tracker):
        if name.startswith("on_"):
            setattr(tracker, name, _forgiving(report_to, getattr(tracker, name), failures))
    return [tracker]


def _forgiving(report_to: str, event, failures: list[Exception]):
    """An event of a tracker that warns where it would raise; after the first failure the tracker is left alone."""

    def call(*args, **kwargs):
        if not failures:
            try:
                event(*args, **kwargs)
            except Exception as error:
                failures.append(error)
                _warn(report_to, error)

    return call


def _warn(report_to: str, error: Exception) -> None:
    hint = f" (pip install {report_to})" if isinstance(error, ImportError | RuntimeError) else ""
    logging.getLogger(__name__).warning("%s is off for this run: %s%s", report_to, type(error).__name__, hint)
