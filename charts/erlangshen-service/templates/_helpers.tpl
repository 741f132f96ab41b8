{{- define "erlangshen.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains "erlangshen" .Release.Name -}}
{{- .Release.Name | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-erlangshen" .Release.Name | trunc 46 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The labels of selectors. */}}
{{- define "erlangshen.selector" -}}
app.kubernetes.io/name: erlangshen-service
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "erlangshen.labels" -}}
{{ include "erlangshen.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The head of an object: a dict with `root`, and a `suffix` of its name. */}}
{{- define "erlangshen.metadata" -}}
name: {{ include "erlangshen.name" .root }}{{ .suffix }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "erlangshen.labels" .root | nindent 2 }}
{{- end -}}

{{- define "erlangshen.image" -}}
{{- $tag := .Values.image.tag | default (printf "%s%s" .Chart.AppVersion (ternary "-cuda" "" .Values.gpu.enabled)) -}}
{{- printf "%s:%s" .Values.image.repository $tag -}}
{{- with .Values.image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "erlangshen.settings" -}}
{{- $settings := dict "ERLANGSHEN_SECURITY__KEYS_FILE" "/etc/erlangshen/keys.toml" "ERLANGSHEN_MODELS__OFFLINE" "true" -}}
{{- with .Values.modelSpecs }}{{ $_ := set $settings "ERLANGSHEN_MODELS__SPECS" (join "," .) }}{{ end -}}
{{- if .Values.gpu.enabled }}{{ $_ := set $settings "ERLANGSHEN_REPLICAS__DEVICES" "cuda:0" }}{{ end -}}
{{- if .Values.tls.enabled -}}
{{- $_ := set $settings "ERLANGSHEN_SECURITY__TLS_CERT" "/etc/erlangshen-tls/tls.crt" -}}
{{- $_ := set $settings "ERLANGSHEN_SECURITY__TLS_KEY" "/etc/erlangshen-tls/tls.key" -}}
{{- end -}}
{{- toYaml (merge (dict) .Values.settings $settings) -}}
{{- end -}}

{{- define "erlangshen.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "erlangshen.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* A container that has the models of the settings in the cache when it ends: a dict with `root`, `name`, `isOnline`. */}}
{{- define "erlangshen.fetch" -}}
- name: {{ .name }}
  image: {{ include "erlangshen.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  {{- if .isOnline }}
  args: [fetch]
  {{- else }}
  command: [sh, -c, "until python -m service fetch; do sleep 10; done"]
  {{- end }}
  envFrom:
    - configMapRef:
        name: {{ include "erlangshen.name" .root }}-settings
  {{- if .isOnline }}
  env:
    - name: ERLANGSHEN_MODELS__OFFLINE
      value: "false"
    - name: HF_TOKEN_PATH
      value: /etc/erlangshen-hub/token
  {{- end }}
  resources:
    requests: {cpu: "1", memory: 1Gi}
    limits: {cpu: "1", memory: 1Gi}
  securityContext:
    {{- include "erlangshen.securityContext" .root | nindent 4 }}
  volumeMounts:
    - {name: cache, mountPath: /cache}
    - {name: tmp, mountPath: /tmp}
    {{- if .isOnline }}
    - {name: hub, mountPath: /etc/erlangshen-hub, readOnly: true}
    {{- end }}
{{- end -}}

{{- define "erlangshen.hubVolume" -}}
# A token of the hub, for private models; created by you, if needed.
- name: hub
  secret:
    secretName: {{ .Values.models.hubSecret }}
    defaultMode: 0440
    optional: true
{{- end -}}

{{- define "erlangshen.probe" -}}
httpGet: {path: {{ .path }}, port: http{{ if .root.Values.tls.enabled }}, scheme: HTTPS{{ end }}}
{{- end -}}

{{/* Egress for a download: DNS and HTTPS. */}}
{{- define "erlangshen.downloads" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
    - {port: 443, protocol: TCP}
{{- end -}}

{{- define "erlangshen.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - {type: Percent, value: 100, periodSeconds: 30}
    - {type: Pods, value: 2, periodSeconds: 30}
  selectPolicy: Max
scaleDown:
  # Lulls shorter than this do not remove pods.
  stabilizationWindowSeconds: 300
  policies:
    - {type: Percent, value: 25, periodSeconds: 60}
    - {type: Pods, value: 1, periodSeconds: 60}
  selectPolicy: Max
{{- end -}}
