"""Every route of the API."""

from fleet.servers.admin.routing import Route
from fleet.servers.admin.sections import SECTIONS, routes_of

ROUTES: tuple[Route, ...] = tuple(route for module in dict.fromkeys(SECTIONS.values()) for route in routes_of(module))
