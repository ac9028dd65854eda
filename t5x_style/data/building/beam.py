"""Parts made by an Apache Beam pipeline: on as many machines as its runner has."""

from collections.abc import Iterator, Sequence

from t5x_style.data.building.parts import Job, build_part
from t5x_style.errors import Fault


def run_with_beam(jobs: list[Job], options: Sequence[str]) -> Iterator[Job]:
    """Makes the parts in one pipeline, then yields the jobs in order.

    The function and the files are those of the pool. So the workers of the runner must see the
    sources and the cache directory under the same paths, and have this package installed.

    Args:
      jobs: the parts.
      options: of the pipeline, such as `--runner=DirectRunner`.

    Raises:
      Fault: the pipeline failed. The parts that were finished are kept.
    """
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions

    if jobs:
        try:
            with apache_beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
                (
                    pipeline
                    | "parts" >> apache_beam.Create(jobs, reshuffle=True)
                    | "build" >> apache_beam.Map(build_part)
                )
        except Exception as error:
            raise Fault(
                f"the Beam pipeline with {' '.join(options)} failed: {type(error).__name__}: "
                f"{error}; the parts that were finished are kept"
            ) from error
    yield from jobs
