"""Images with their labels, patients and folds: one Dataset a task.

People's images come in by `ingest`, which knows the `layouts`; drawn ones are in `drawn`; `tasks`
loads both. From below come `config` and `store` alone; import nothing above.
"""

from transfusion.images.ingest import prepare
from transfusion.images.tasks import load, prepared_path, resolve, split_of

__all__ = ["load", "prepare", "prepared_path", "resolve", "split_of"]
