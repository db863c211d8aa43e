"""The fields of what cluster/ writes for Kubernetes, as JSON schemas: a name that is not here is a mistake.

ray.io/v1 is KubeRay 1.7.0's API reference (docs.ray.io, "KubeRay CRD API reference") without RayService and RayCronJob.
Of Kubernetes' own types (1.28) it is what a pod with Ray in it may need.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
YES_NO: Schema = {"type": "boolean"}
ANY: Schema = {}
TEXTS: Schema = {"type": "array", "items": TEXT}
TEXT_MAP: Schema = {"type": "object", "additionalProperties": TEXT}  # a bare number or true is refused by Kubernetes
AMOUNTS: Schema = {
    "type": "object",
    "additionalProperties": {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"},
}


def fields(*required: str, **known: Schema) -> Schema:
    """A mapping with these fields and no others."""
    return {"type": "object", "properties": known, "required": list(required), "additionalProperties": False}


def several(item: Schema) -> Schema:
    """A list that is not empty."""
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*values: str) -> Schema:
    """One of these words."""
    return {"enum": list(values)}


METADATA = fields(name=TEXT, generateName=TEXT, namespace=TEXT, labels=TEXT_MAP, annotations=TEXT_MAP)
SELECTOR = fields(matchLabels=TEXT_MAP, matchExpressions=ANY)
RESOURCES = fields(requests=AMOUNTS, limits=AMOUNTS, claims=ANY)

# Pods

KEY_REF = fields("name", "key", name=TEXT, key=TEXT, optional=YES_NO)
ENV = several(
    fields(
        "name",
        name=TEXT,
        value=TEXT,
        valueFrom=fields(secretKeyRef=KEY_REF, configMapKeyRef=KEY_REF, fieldRef=ANY, resourceFieldRef=ANY),
    )
)
ENV_FROM = several(fields(prefix=TEXT, secretRef=ANY, configMapRef=ANY))
MOUNTS = several(fields("name", "mountPath", name=TEXT, mountPath=TEXT, subPath=TEXT, readOnly=YES_NO))
HOOK = fields(exec=fields("command", command=TEXTS), httpGet=ANY, sleep=ANY)
CONTAINER = fields(
    "name",
    "image",
    name=TEXT,
    image=TEXT,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    command=TEXTS,
    args=TEXTS,
    workingDir=TEXT,
    env=ENV,
    envFrom=ENV_FROM,
    ports=several(fields("containerPort", containerPort=COUNT, name=TEXT, protocol=TEXT, hostPort=COUNT)),
    resources=RESOURCES,
    volumeMounts=MOUNTS,
    lifecycle=fields(preStop=HOOK, postStart=HOOK),
    livenessProbe=ANY,
    readinessProbe=ANY,
    startupProbe=ANY,
    securityContext=ANY,
)
POD_SECURITY = fields(runAsUser=COUNT, runAsGroup=COUNT, runAsNonRoot=YES_NO, fsGroup=COUNT, fsGroupChangePolicy=TEXT)
VOLUME = fields(
    "name",
    name=TEXT,
    persistentVolumeClaim=fields("claimName", claimName=TEXT, readOnly=YES_NO),
    emptyDir=fields(medium=one_of("", "Memory"), sizeLimit=TEXT),
    secret=ANY,
    configMap=ANY,
    nfs=ANY,
    hostPath=ANY,
    csi=ANY,
)
TOLERATION = fields(key=TEXT, operator=one_of("Exists", "Equal"), value=TEXT, effect=TEXT, tolerationSeconds=COUNT)
POD = fields(
    "containers",
    containers=several(CONTAINER),
    initContainers=several(CONTAINER),
    volumes=several(VOLUME),
    restartPolicy=one_of("Always", "OnFailure", "Never"),
    terminationGracePeriodSeconds=COUNT,
    nodeSelector=TEXT_MAP,
    affinity=ANY,
    tolerations=several(TOLERATION),
    topologySpreadConstraints=ANY,
    priorityClassName=TEXT,
    schedulerName=TEXT,
    runtimeClassName=TEXT,
    serviceAccountName=TEXT,
    imagePullSecrets=several(fields(name=TEXT)),
    shareProcessNamespace=YES_NO,
    hostNetwork=YES_NO,
    securityContext=POD_SECURITY,
)
POD_TEMPLATE = fields("spec", metadata=METADATA, spec=POD)

# ray.io/v1

AUTOSCALER = fields(
    resources=RESOURCES,
    image=TEXT,
    imagePullPolicy=TEXT,
    securityContext=ANY,
    idleTimeoutSeconds=COUNT,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    version=one_of("v1", "v2"),
    env=ENV,
    envFrom=ENV_FROM,
    volumeMounts=MOUNTS,
    command=TEXTS,
    args=TEXTS,
)
AUTH = fields(mode=one_of("disabled", "token"), secretName=TEXT, enableK8sTokenAuth=YES_NO)
HEAD_GROUP = fields(
    "rayStartParams",
    "template",
    template=POD_TEMPLATE,
    headService=ANY,
    enableIngress=YES_NO,
    ingressOptions=ANY,
    resources=TEXT_MAP,
    labels=TEXT_MAP,
    rayStartParams=TEXT_MAP,
    serviceType=TEXT,
)
WORKER_GROUP = fields(
    "groupName",
    "minReplicas",
    "maxReplicas",
    "rayStartParams",
    "template",
    suspend=YES_NO,
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    priority=COUNT,
    resources=TEXT_MAP,
    labels=TEXT_MAP,
    rayStartParams=TEXT_MAP,
    template=POD_TEMPLATE,
    scaleStrategy=fields(workersToDelete=TEXTS),
    numOfHosts=COUNT,
)
CLUSTER = fields(
    "headGroupSpec",
    upgradeStrategy=fields(type=one_of("Recreate", "None")),
    authOptions=AUTH,
    suspend=YES_NO,
    managedBy=TEXT,
    autoscalerOptions=AUTOSCALER,
    headServiceAnnotations=TEXT_MAP,
    enableInTreeAutoscaling=YES_NO,
    gcsFaultToleranceOptions=ANY,
    historyServerOptions=ANY,
    networkPolicy=ANY,
    tlsOptions=fields(enabled=YES_NO),
    headGroupSpec=HEAD_GROUP,
    rayVersion=TEXT,
    workerGroupSpecs=several(WORKER_GROUP),
)
JOB = fields(
    activeDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    rayClusterSpec=CLUSTER,
    submitterPodTemplate=POD_TEMPLATE,
    metadata=TEXT_MAP,
    clusterSelector=TEXT_MAP,
    submitterConfig=fields(backoffLimit=COUNT),
    managedBy=TEXT,
    deletionStrategy=ANY,
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    entrypointResources=TEXT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=COUNT,
    preRunningDeadlineSeconds=COUNT,
    shutdownAfterJobFinishes=YES_NO,
    suspend=YES_NO,
)

# Kubernetes' own kinds

DEPLOYMENT = fields(
    "selector",
    "template",
    replicas=COUNT,
    selector=SELECTOR,
    template=POD_TEMPLATE,
    strategy=fields(type=one_of("Recreate", "RollingUpdate"), rollingUpdate=ANY),
    minReadySeconds=COUNT,
    revisionHistoryLimit=COUNT,
    progressDeadlineSeconds=COUNT,
    paused=YES_NO,
)
CLAIM = fields(
    "accessModes",
    "resources",
    accessModes=several(one_of("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")),
    resources=RESOURCES,
    storageClassName=TEXT,
    volumeName=TEXT,
    volumeMode=one_of("Filesystem", "Block"),
    selector=SELECTOR,
)

KINDS = {
    ("ray.io/v1", "RayCluster"): CLUSTER,
    ("ray.io/v1", "RayJob"): JOB,
    ("apps/v1", "Deployment"): DEPLOYMENT,
    ("v1", "PersistentVolumeClaim"): CLAIM,
}


def schema(api: str, kind: str) -> Schema:
    """The schema of a whole document. Raises KeyError for a kind that cluster/ has no use for."""
    document = fields("apiVersion", "kind", "metadata", "spec", apiVersion=TEXT, kind=TEXT, metadata=METADATA)
    return {**document, "properties": {**document["properties"], "spec": KINDS[api, kind]}}
