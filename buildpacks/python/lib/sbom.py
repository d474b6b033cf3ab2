"""sbom.py SITE_PACKAGES: prints what is installed there as a CycloneDX document, the same for equal packages."""

import json
import sys
from importlib.metadata import distributions


def component(distribution):
    name, version = distribution.metadata["Name"], distribution.version
    purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
    entry = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    license_ = distribution.metadata["License-Expression"] or distribution.metadata["License"]
    if license_ and len(license_) < 64:  # some packages have the licence's whole text there
        entry["licenses"] = [{"license": {"name": license_}}]
    return entry


components = {c["purl"]: c for c in map(component, distributions(path=sys.argv[1:]))}
json.dump(
    {
        "bomFormat": "CycloneDX",
        "specVersion": "1.4",
        "version": 1,
        "components": [components[purl] for purl in sorted(components)],
    },
    sys.stdout,
)
