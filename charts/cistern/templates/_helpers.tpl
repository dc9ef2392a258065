{{/* Labels of all objects. */}}
{{- define "cistern.labels" -}}
app.kubernetes.io/name: cistern
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "cistern.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* "true" if snapshots can be made: the values say so, or the cluster has the API. */}}
{{- define "cistern.snapshots" -}}
{{- $enabled := toString .Values.snapshots.enabled -}}
{{- if or (eq $enabled "true") (and (eq $enabled "auto") (.Capabilities.APIVersions.Has "snapshot.storage.k8s.io/v1")) -}}true{{- end -}}
{{- end }}

{{/* The environment of both parts: what the flags of every server say. */}}
{{- define "cistern.environment" -}}
- { name: CISTERN_DRIVER_NAME, value: {{ .Values.driverName | quote }} }
- { name: CISTERN_LOG, value: {{ .Values.logLevel | quote }} }
- { name: CISTERN_LOG_FORMAT, value: {{ .Values.logFormat | quote }} }
{{- end }}

{{/* A sidecar. Takes: root, name, port, and flags of its own. */}}
{{- define "cistern.sidecar" -}}
{{- $sidecars := .root.Values.sidecars -}}
{{- $image := index $sidecars .name -}}
- name: {{ .name }}
  image: {{ $image.repository }}:{{ $image.tag }}
  imagePullPolicy: {{ $sidecars.pullPolicy }}
  args:
    - --csi-address=/run/csi/csi.sock
    - --http-endpoint=:{{ .port }}
    - --leader-election
    - --leader-election-namespace=$(NAMESPACE)
    - --kube-api-qps={{ $sidecars.kubeApiQps }}
    - --kube-api-burst={{ $sidecars.kubeApiBurst }}
    - --retry-interval-max={{ $sidecars.retryIntervalMax }}
    - --v={{ $sidecars.verbosity }}
    {{- range .flags }}
    - {{ . }}
    {{- end }}
  env:
    - { name: NAMESPACE, valueFrom: { fieldRef: { fieldPath: metadata.namespace } } }
    - { name: POD_NAME, valueFrom: { fieldRef: { fieldPath: metadata.name } } }
  ports:
    - { name: {{ .name }}, containerPort: {{ .port }} }
  # fails when it should renew its lease and cannot; it ends by itself when the controller beside it does
  livenessProbe:
    httpGet: { path: /healthz/leader-election, port: {{ .name }} }
    initialDelaySeconds: 10
    periodSeconds: 20
    timeoutSeconds: 10
  resources: {{- toYaml $sidecars.resources | nindent 4 }}
  securityContext: {{- include "cistern.confined" . | nindent 4 }}
  volumeMounts:
    - { name: socket, mountPath: /run/csi }
{{- end }}

{{/* The rights of containers that need none. */}}
{{- define "cistern.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{/* Probes of cistern itself. Takes: port. A start may take minutes where stores are many; a controller waits for its hosts. */}}
{{- define "cistern.probes" -}}
startupProbe:
  httpGet: { path: /healthz, port: {{ .port }} }
  periodSeconds: 1
  timeoutSeconds: 3
  failureThreshold: 600
livenessProbe:
  httpGet: { path: /healthz, port: {{ .port }} }
  periodSeconds: 10
  timeoutSeconds: 3
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /healthz, port: {{ .port }} }
  periodSeconds: 5
  timeoutSeconds: 3
{{- end }}
