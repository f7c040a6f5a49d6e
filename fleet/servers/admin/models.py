"""The routes of models."""

from fleet.domain.access import Operator
from fleet.domain.device import Model
from fleet.domain.errors import NotFound, Refused
from fleet.domain.topic_policy import widened
from fleet.servers.admin.conditions import demand_match
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import page_of_all, paged
from fleet.servers.admin.idempotency import answering
from fleet.servers.admin.result import Result
from fleet.servers.admin.shapes import changed_model, model_json, progress_json
from fleet.services import inventory, renewal

_CONCERNS_ALL = "concerns the whole fleet, and this operator is held to models."


async def list_models(context: Context, call: Call) -> Result:
    found = [model for model in await context.registry.models() if call.operator.sees(model.name)]
    page, more = page_of_all(call, found, _name)
    return paged(call, [model_json(model) for model in page], [page[-1].name] if more else None)


def _name(model: Model) -> str:
    return model.name


async def get_model(context: Context, call: Call) -> Result:
    return _reply(await _found(context, call.operator, call.path["name"]))


async def get_renewal(context: Context, call: Call) -> Result:
    model = await _found(context, call.operator, call.path["name"])
    return Result(progress_json(await renewal.progress(context.registry, model.name)))


async def create_model(context: Context, call: Call) -> Result:
    model = changed_model(Model(call.body["name"]), call.body)
    reply = _created(model)
    registry = answering(context.registry, call.once, lambda _: reply)
    await inventory.add_model(registry, model, act=call.act, tenants=context.tenants())
    return reply


async def replace_model(context: Context, call: Call) -> Result:
    """What the body leaves out is as in a new model."""
    old = await _found(context, call.operator, call.path["name"])
    return await _changed(context, call, old, changed_model(Model(old.name, revision=old.revision), call.body))


async def patch_model(context: Context, call: Call) -> Result:
    old = await _found(context, call.operator, call.path["name"])
    return await _changed(context, call, old, changed_model(old, call.body))


async def _changed(context: Context, call: Call, old: Model, new: Model) -> Result:
    """The revision that was read goes with the write: the registry decides who came first."""
    demand_match(call, old.revision, f"Model {old.name}")
    if call.operator.models:
        _must_stay_its_own(old, new)
    await inventory.set_model(context.registry, new, act=call.act, tenants=context.tenants())
    return _reply(await _found(context, call.operator, new.name))


def _must_stay_its_own(old: Model, new: Model) -> None:
    """What an operator who is held to models may make of one of them: nothing that reaches what is others'.

    Raises: Refused (`held-to-models`).
    """
    if set(new.rules.signers) - set(old.rules.signers):
        # A tenant's own people would reach another tenant's CA by it.
        raise Refused("held-to-models", f"Whose CA signs {_CONCERNS_ALL}")
    # Topics are one space: devices of the model would read, or speak for, those of other models.
    if beyond := widened(old.publish, new.publish) or widened(old.subscribe, new.subscribe):
        what = f"{beyond[:80]!r} is wider than the topics of model {old.name}, and that {_CONCERNS_ALL}"
        raise Refused("held-to-models", what, "Narrow its topics, or have them widened by who is not held to models.")
    # And so are names: a device of the model would bear that of another's.
    if set(_name_templates(new)) - set(_name_templates(old)):
        raise Refused("held-to-models", f"What DNS names and URIs a certificate holds {_CONCERNS_ALL}")


def _name_templates(model: Model) -> tuple[str, ...]:
    profile = model.rules.profile
    return tuple(filter(None, (profile.dns_name, *profile.uris)))


async def _found(context: Context, operator: Operator, name: str) -> Model:
    model = await context.registry.model(name)
    if model is None or not operator.sees(name):
        raise NotFound("no-such-model", f"There is no model {name}.")
    return model


def _reply(model: Model) -> Result:
    return Result(model_json(model), etag=str(model.revision))


def _created(model: Model) -> Result:
    return Result(model_json(model), 201, {"Location": f"/v1/models/{model.name}"}, str(model.revision))
