"""What users of Fewbit import: the contract's models. The client is ``fewbit.client.Client``."""

from fewbit.contract.report import Report
from fewbit.contract.resources import Artifact, Dataset, Job, Model
from fewbit.contract.spec import JobSpec
from fewbit.version import VERSION as __version__

__all__ = ["Artifact", "Dataset", "Job", "JobSpec", "Model", "Report", "__version__"]
