{{- define "tidings.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* At most 40 characters: with what follows, names of pods and their revisions fit into labels. */}}
{{- define "tidings.fullname" -}}
{{- $name := include "tidings.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Of a component (controller, dispatcher): dict "root" $ "component" "controller". */}}
{{- define "tidings.componentName" -}}
{{- printf "%s-%s" (include "tidings.fullname" .root) .component }}
{{- end }}

{{/* Never the namespace's "default", which every pod has that names none. */}}
{{- define "tidings.serviceAccountName" -}}
{{- default (include "tidings.componentName" .) (get .root.Values .component).serviceAccount.name }}
{{- end }}

{{- define "tidings.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tidings.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "tidings.labels" -}}
{{- $own := include "tidings.selectorLabels" . | fromYaml }}
{{- $_ := set $own "app.kubernetes.io/part-of" "tidings" }}
{{- $_ := set $own "app.kubernetes.io/version" .root.Chart.AppVersion }}
{{- $_ := set $own "app.kubernetes.io/managed-by" .root.Release.Service }}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") }}
{{- toYaml (merge $own (default dict .labels) .root.Values.commonLabels) }}
{{- end }}

{{/* Labels and annotations; "labels" and "annotations" are the object's own. */}}
{{- define "tidings.metadata" -}}
labels:
  {{- include "tidings.labels" . | nindent 2 }}
{{- with merge (deepCopy (default dict .annotations)) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "tidings.image" -}}
{{- $image := .Values.image }}
{{- if $image.digest }}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) }}
{{- end }}
{{- end }}

{{/* Of a process: where its objects are watched. */}}
{{- define "tidings.watchArgs" -}}
{{- range .Values.watchNamespaces }}
- --watch-namespace={{ . }}
{{- end }}
{{- end }}

{{- define "tidings.namespacesRule" -}}
# The policy selects namespaces by their labels; what is stored is keyed by their UID.
- apiGroups: [""]
  resources: [namespaces]
  {{- with .Values.watchNamespaces }}
  resourceNames: {{ toJson . }}
  {{- end }}
  verbs: [get, list, watch]
{{- end }}

{{- define "tidings.ingestPort" -}}
{{- default (ternary 443 80 (ne .Values.dispatcher.tls.secretName "")) .Values.dispatcher.service.port }}
{{- end }}

{{/* Where producers post, without the usual port. */}}
{{- define "tidings.ingestURL" -}}
{{- $tls := ne .Values.dispatcher.tls.secretName "" }}
{{- $host := printf "%s.%s" (include "tidings.componentName" (dict "root" . "component" "dispatcher")) .Release.Namespace }}
{{- $port := include "tidings.ingestPort" . | int }}
{{- printf "%s://%s" (ternary "https" "http" $tls) $host }}
{{- if ne $port (ternary 443 80 $tls) }}:{{ $port }}{{ end }}
{{- end }}

{{- define "tidings.metricsName" -}}
{{- printf "%s-metrics" (include "tidings.fullname" .) }}
{{- end }}

{{- define "tidings.policyConfigMap" -}}
{{- default (printf "%s-policy" (include "tidings.fullname" .)) .Values.policyConfigMap }}
{{- end }}

{{/* Of a pod's template: nothing that depends on the chart's version, or an upgrade would restart what it does not change. */}}
{{- define "tidings.podMetadata" -}}
{{- $own := get .root.Values .component -}}
labels:
  {{- $labels := include "tidings.selectorLabels" . | fromYaml }}
  {{- toYaml (merge $labels $own.podLabels .root.Values.commonLabels) | nindent 2 }}
{{- with merge (deepCopy $own.podAnnotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "tidings.podSpec" -}}
{{- $own := get .root.Values .component -}}
serviceAccountName: {{ include "tidings.serviceAccountName" . }}
automountServiceAccountToken: true
# Links to every Service as environment variables: nobody reads them.
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with $own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The variables that OpenTelemetry defines. */}}
{{- define "tidings.tracing" -}}
{{- with .Values.tracing }}
{{- if .endpoint -}}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
- name: OTEL_TRACES_SAMPLER
  value: parentbased_traceidratio
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .sampleRatio | quote }}
{{- if .headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef:
      name: {{ .headersSecret }}
      key: headers
{{- end }}
{{- if .caConfigMap }}
- name: OTEL_EXPORTER_OTLP_CERTIFICATE
  value: /etc/tidings/collector/ca.crt
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "tidings.container" -}}
{{- $own := get .root.Values .component -}}
image: {{ include "tidings.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- toYaml .root.Values.securityContext | nindent 2 }}
resources:
  {{- toYaml $own.resources | nindent 2 }}
env:
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  - name: POD_NAMESPACE
    valueFrom:
      fieldRef:
        fieldPath: metadata.namespace
  - name: TIDINGS_LOG_FORMAT
    value: {{ .root.Values.log.format }}
  {{- with .root.Values.log.filter }}
  - name: RUST_LOG
    value: {{ . | quote }}
  {{- end }}
  {{- if eq .component "dispatcher" }}
  {{- with include "tidings.tracing" .root }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- end }}
  {{- with $own.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
livenessProbe:
  httpGet:
    path: /livez
    port: metrics
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /readyz
    port: metrics
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 3
{{- end }}
