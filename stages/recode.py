"""`teachonce recode`: makes another store of a finished one, or files for other programs, without the teacher."""

from __future__ import annotations

from ..pipeline.ledger import Ledger
from ..pipeline.output import check_output, claim_output
from ..pipeline.settings import check
from ..pipeline.storage import Location
from .pairs.store import open_store, read_description
from .pairs.store_root import refuse_lost_root
from .recoding.class_list import refuse_other_classes
from .recoding.export_stage import ExportStage
from .recoding.layouts import describe_files, layout_of
from .recoding.new_encodings import new_encodings
from .recoding.store_stage import StoreStage, describe
from .recoding.taking import take
from .settings.recode import RecodeSettings, check_layout, output_form


def plan_recode(
    store: Location | str, *, out: Location | str, settings: RecodeSettings | None = None
) -> StoreStage | ExportStage:
    """The stage that recodes a store; makes the new store's arrays, or what describes the files, if they are not there.

    Args:
        store: a finished target store.
        out: a new one; or a folder for files, where the settings name a layout.
        settings: None copies everything.

    Raises:
        InputError, IncompleteError, DamagedError: `store` is no finished store; it lacks what is to be taken; nothing is left; no
            encoding keeps the budget.
        MismatchError: class vectors of another teacher.
    """
    settings = settings or RecodeSettings()
    check(settings)
    check_layout(settings)
    parent, new = Location.of(store), Location.of(out)
    inputs = (parent, settings.classes_from, settings.samples, settings.shards)
    check_output(new, output_form(settings), inputs=inputs)
    if settings.to is not None:
        return _plan_export(parent, new, settings)
    refuse_lost_root(new)
    taken = take(parent, settings)
    refuse_other_classes(new, taken.classes)
    plan = Ledger(new, StoreStage.ledger).plan()
    begun = None if plan is None else read_description(open_store(new), new)
    encodings = new_encodings(taken, settings, begun)
    claim_output(new, StoreStage.ledger)
    stage = StoreStage(
        out=new,
        source=taken.source,
        description=describe(taken, encodings, settings.view_params),
        classes=taken.classes,
        notes=taken.notes + encodings.notes,
    )
    if plan is None:
        stage.create()
    return stage


def _plan_export(parent: Location, out: Location, settings: RecodeSettings) -> ExportStage:
    taken = take(parent, settings)
    exported = describe_files(taken)
    layout = layout_of(settings, exported)
    layout.check(exported, parent)
    claim_output(out, ExportStage.name)
    stage = ExportStage(
        out=out,
        source=taken.source,
        origin=taken.origin,
        layout=layout,
        shards=taken.shards,
        description={**layout.to_json(), **exported.to_json()},
        files=layout.beside(exported),
        notes=taken.notes,
    )
    if Ledger(out, ExportStage.name).plan() is None:
        stage.create()
    return stage
