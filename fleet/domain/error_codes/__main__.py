"""Prints the page fleet/ERRORS.md."""

import sys

from fleet.domain.error_codes import errors_page

sys.stdout.write(errors_page())
