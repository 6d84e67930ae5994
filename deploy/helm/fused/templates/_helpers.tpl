{{/*
Helpers take the tier they are asked for: (dict "root" $ "component" "engine" "values" .Values.engine).
*/}}

{{/* The longest suffix is "-tokenizer", and a Service's name has 63 characters at most. */}}
{{- define "fused.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "fused.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Selectors cannot be changed on upgrade: nothing of the user's, no version may ever come in here. */}}
{{- define "fused.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "fused.metadata" -}}
name: {{ include "fused.fullname" .root }}-{{ .component }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "fused.selectorLabels" . | nindent 2 }}
  app.kubernetes.io/part-of: fused
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "fused.podMetadata" -}}
labels:
  {{- include "fused.selectorLabels" . | nindent 2 }}
  app.kubernetes.io/part-of: fused
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Sleep, drain, then ten seconds in which tasks end and the process exits. */}}
{{- define "fused.gracePeriodSeconds" -}}
{{- with .Values.drain -}}
{{ add .preStopSeconds .timeoutSeconds 10 }}
{{- end -}}
{{- end -}}

{{/* A new pod may take all of its startup time, after the one that it replaces took all of its grace period. */}}
{{- define "fused.rollout" -}}
{{- $strategy := .values.strategy -}}
{{- $surge := toString $strategy.maxSurge | trimSuffix "%" -}}
{{- $unavailable := toString $strategy.maxUnavailable | trimSuffix "%" -}}
{{- if and (eq $surge "0") (eq $unavailable "0") -}}
{{- fail (printf "%s.strategy: maxSurge and maxUnavailable are both 0, so no pod could ever be replaced" .component) -}}
{{- end -}}
replicas: {{ int .values.replicaCount }}
strategy:
  type: RollingUpdate
  rollingUpdate:
    maxSurge: {{ $strategy.maxSurge }}
    maxUnavailable: {{ $strategy.maxUnavailable }}
progressDeadlineSeconds: {{ add .root.Values.startup.timeoutSeconds (include "fused.gracePeriodSeconds" .root) 60 }}
selector:
  matchLabels:
    {{- include "fused.selectorLabels" . | nindent 4 }}
{{- end -}}

{{/*
Service links would put variables like FUSED_ENGINE_PORT=tcp://... into the environment, and FUSED_... is where settings
are read from.
*/}}
{{- define "fused.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" }}
{{- with index $.values $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "fused.container" -}}
image: {{ include "fused.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* What every tier's container has besides: resources, environment, the wait before SIGTERM. */}}
{{- define "fused.server" -}}
{{- include "fused.container" . }}
resources:
  {{- toYaml .values.resources | nindent 2 }}
{{- $env := include "fused.env" . }}
{{- if $env }}
env:
  {{- $env | nindent 2 }}
{{- end }}
{{- if .root.Values.drain.preStopSeconds }}
lifecycle:
  preStop:
    sleep:
      seconds: {{ int .root.Values.drain.preStopSeconds }}
{{- end }}
{{- end -}}

{{- define "fused.commonArgs" -}}
- --drain-timeout-s={{ int .root.Values.drain.timeoutSeconds }}
- --log-format=json
{{- with .root.Values.telemetry.otlpEndpoint }}
- --otlp-endpoint={{ . }}
{{- end }}
{{- range .values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Server-side apply refuses two variables of one name; here the message says which. */}}
{{- define "fused.env" -}}
{{- $env := list -}}
{{- if and (ne .component "gateway") (hasPrefix "hf://" .root.Values.model.uri) -}}
{{- $env = append $env (dict "name" "HF_HOME" "value" "/var/cache/fused") -}}
{{- with .root.Values.model.hubTokenSecret -}}
{{- if .name -}}
{{- $env = append $env (dict "name" "HF_TOKEN" "valueFrom" (dict "secretKeyRef" (dict "name" .name "key" .key))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $env = concat $env .values.extraEnv -}}
{{- $names := list -}}
{{- range $env -}}
{{- if has .name $names -}}
{{- fail (printf "%s.extraEnv: %s is set twice, or by the chart itself" $.component .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- if $env -}}
{{- toYaml $env -}}
{{- end -}}
{{- end -}}

{{/* A gRPC probe takes a number, not the name of a port. */}}
{{- define "fused.grpcProbe" -}}
grpc:
  port: {{ .port }}
  service: {{ .service | quote }}
{{- end -}}
