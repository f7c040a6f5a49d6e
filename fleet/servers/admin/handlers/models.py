"""Models."""

from msgspec.structs import replace

from fleet.domain import device as domain
from fleet.domain.access import NotPermitted, Permission
from fleet.domain.errors import no_such
from fleet.domain.mqtt_overrides import all_filters
from fleet.domain.topic_policy import widened
from fleet.servers.admin.conditions import demand_match
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import page_of_all
from fleet.servers.admin.idempotency import answering
from fleet.servers.admin.records.base import Page, Paging
from fleet.servers.admin.records.models import Model, ModelChanges, ModelReplacement, NewModel, Renewal
from fleet.servers.admin.routing import Condition, Result, get, patch, post, put
from fleet.services import inventory, renewal

_CONCERNS_ALL = "concerns the whole fleet, and this operator is restricted to models."


@get("/v1/models", Permission.MODEL_READ, "Models, by name.")
async def list_models(context: Context, call: Call, query: Paging) -> Result[Page[Model]]:
    found = [model for model in await context.registry.models() if call.operator.sees(model.name)]
    return page_of_all(call, query, found, lambda model: model.name, Model.shown)


@post("/v1/models", Permission.MODEL_CREATE, "Add a model.", status=201, has_etag=True)
async def create_model(context: Context, call: Call, body: NewModel) -> Result[Model]:
    model = body.made(body.name)
    location = {"Location": f"/v1/models/{model.name}"}
    result: Result[Model] = Result(Model.shown(model), 201, location, str(model.revision))
    registry = answering(context.registry, call.once, lambda _: result)
    context.authorities().demand_names(inventory.checked_model(model), call.now)
    await inventory.add_model(registry, model, act=call.act, tenants=context.tenants())
    return result


@get("/v1/models/{name}", Permission.MODEL_READ, "One model.", has_etag=True)
async def get_model(context: Context, call: Call) -> Result[Model]:
    return _result(await _found(context, call))


@get(
    "/v1/models/{name}/renewal",
    Permission.MODEL_READ,
    "Progress of a model's renewal campaign; counts the model's devices.",
)
async def get_renewal(context: Context, call: Call) -> Result[Renewal]:
    model = await _found(context, call)
    return Result(Renewal.shown(await renewal.progress(context.registry, model.name)))


@put(
    "/v1/models/{name}",
    Permission.MODEL_WRITE,
    "Replace a model; what is left out is as in a new one.",
    has_etag=True,
    condition=Condition.REQUIRED,
)
async def replace_model(context: Context, call: Call, body: ModelReplacement) -> Result[Model]:
    old = await _found(context, call)
    return await _changed(context, call, old, replace(body.made(old.name), revision=old.revision))


@patch(
    "/v1/models/{name}",
    Permission.MODEL_WRITE,
    "Change a model; new topics apply to live sessions at once.",
    has_etag=True,
    condition=Condition.REQUIRED,
)
async def patch_model(context: Context, call: Call, body: ModelChanges) -> Result[Model]:
    old = await _found(context, call)
    return await _changed(context, call, old, body.applied(old))


async def _changed(context: Context, call: Call, old: domain.Model, new: domain.Model) -> Result[Model]:
    """The revision that was read goes with the write: the registry decides who came first."""
    demand_match(call, old.revision, f"Model {old.name}")
    if call.operator.models:
        _must_not_reach_other_models(old, new)
    if (new.rules.profile, new.rules.tenant) != (old.rules.profile, old.rules.tenant):
        context.authorities().demand_names(inventory.checked_model(new), call.now)
    return _result(await inventory.set_model(context.registry, new, act=call.act, tenants=context.tenants()))


def _must_not_reach_other_models(old: domain.Model, new: domain.Model) -> None:
    """What an operator who is restricted to models may change in one of them: nothing that reaches others.

    Raises: NotPermitted (`held-to-models`).
    """
    if set(new.rules.signers) - set(old.rules.signers):
        # A tenant's own people would reach another tenant's CA by it.
        raise NotPermitted("held-to-models", f"Whose CA signs {_CONCERNS_ALL}")
    # Topics are one space: devices of the model would read, or publish as, those of other models.
    if beyond := next(filter(None, map(widened, all_filters(old), all_filters(new))), ""):
        what = f"{beyond[:80]!r} is wider than the topics of model {old.name}, and that {_CONCERNS_ALL}"
        raise NotPermitted("held-to-models", what, "Narrow its topics, or ask an operator without that restriction.")
    # And so are names: a device of the model would bear that of another's.
    if set(_name_templates(new)) - set(_name_templates(old)):
        raise NotPermitted("held-to-models", f"What DNS names and URIs a certificate holds {_CONCERNS_ALL}")


def _name_templates(model: domain.Model) -> tuple[str, ...]:
    profile = model.rules.profile
    return tuple(filter(None, (profile.dns_name, *profile.uris)))


async def _found(context: Context, call: Call) -> domain.Model:
    name = call.path["name"]
    model = await context.registry.model(name)
    if model is None or not call.operator.sees(name):
        raise no_such("model", name)
    return model


def _result(model: domain.Model) -> Result[Model]:
    return Result(Model.shown(model), etag=str(model.revision))
