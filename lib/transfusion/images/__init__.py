"""Images with their labels, patients and folds: one Dataset a task.

People's images come in by `ingest`, which knows `layouts`, made of tables (`labels`) and files
(`listing`); drawn ones are in `drawn`; `tasks` loads both. Below: `config` and `store` alone.
"""

from transfusion.images.ingest import prepare
from transfusion.images.tasks import load, prepared_path, resolve, split_of

__all__ = ["load", "prepare", "prepared_path", "resolve", "split_of"]
