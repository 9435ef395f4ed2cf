"""The manifests in docs/ are what Kubernetes takes. The schemas come with the package; no cluster is asked."""

from __future__ import annotations

import kubernetes_validate
import pytest
import yaml

from tests.support.daemon import ROOT

MANIFEST = ROOT / "docs/how-to/ktaskfs-kubernetes.yaml"
VERSIONS = ("1.28", "1.34")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifest_has_the_fields_of_kubernetes(version: str) -> None:
    documents = list(yaml.safe_load_all(MANIFEST.read_text()))
    assert [each["kind"] for each in documents] == ["DaemonSet", "Pod"]
    for each in documents:
        kubernetes_validate.validate(each, version, strict=True)


def test_a_field_that_is_unknown_is_found() -> None:
    pod = list(yaml.safe_load_all(MANIFEST.read_text()))[1]
    pod["spec"]["containers"][0]["volumeMounts"][0]["mountPropagatoin"] = "None"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)
