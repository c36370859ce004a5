{{- define "dekag.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "dekag.selector" -}}
app.kubernetes.io/name: dekag
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "dekag.labels" -}}
{{ include "dekag.selector" . }}
app.kubernetes.io/version: {{ .root.Values.image.tag | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* module and port of each service; the distiller has none */}}
{{- define "dekag.services" -}}
gateway: {module: services.gateway, port: 8080}
user: {module: services.user, port: 50051}
channel: {module: services.channel, port: 50052}
edge: {module: services.edge, port: 50053}
cloud: {module: services.cloud, port: 50054}
distiller: {module: services.cloud.distiller, port: 0}
{{- end }}

{{- define "dekag.metricsPort" -}}9464{{- end }}

{{- define "dekag.redisPassword" -}}
{{- .Values.redis.passwordSecret | default (printf "%s-redis-password" (include "dekag.name" .)) -}}
{{- end }}

{{/* restricted pod security */}}
{{- define "dekag.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "dekag.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* variables of one service, lowest precedence first */}}
{{- define "dekag.environment" -}}
{{- $name := include "dekag.name" .root -}}
{{- $values := .root.Values -}}
{{- $env := dict
  "DEKAG_HOST" "0.0.0.0"
  "DEKAG_GRACE_S" ($values.graceSeconds | toString)
  "DEKAG_DRAIN_S" ($values.drainSeconds | toString)
  "DEKAG_METRICS_PORT" (include "dekag.metricsPort" .root)
  "DEKAG_METRICS_HOST" "0.0.0.0"
  "DEKAG_PUBLISHED_ON" (ternary "" "nowhere" $values.tls.enabled) -}}
{{- if .port }}{{ $_ := set $env "DEKAG_PORT" (.port | toString) }}{{ end -}}
{{- if $values.tls.enabled }}{{ $_ := set $env "DEKAG_TLS_DIR" "/credentials" }}{{ end -}}
{{- if $values.redis.enabled -}}
{{- $_ := set $env "DEKAG_REDIS_URL" (printf "%s://default@%s-redis:6379/0" (ternary "rediss" "redis" $values.tls.enabled) $name) -}}
{{- $_ := set $env "DEKAG_REDIS_PASSWORD_FILE" "/redis/redis.password" -}}
{{- end -}}
{{- if eq .component "gateway" -}}
{{- $_ := set $env "DEKAG_USER_ADDRESS" (printf "%s-user:50051" $name) -}}
{{- $_ := set $env "DEKAG_ALLOWED_HOSTS" (printf "localhost,%s-gateway,%s-gateway.%s.svc" $name $name .root.Release.Namespace) -}}
{{- $_ := set $env "DEKAG_PUBLISHED_ON" (ternary "0.0.0.0" "nowhere" (ne $values.gateway.apiKeysSecret "")) -}}
{{- if $values.gateway.apiKeysSecret }}{{ $_ := set $env "DEKAG_API_KEYS_FILE" "/keys/api-keys" }}{{ end -}}
{{- if include "dekag.https" .root }}{{ $_ := set $env "DEKAG_HTTPS_DIR" "/https" }}{{ end -}}
{{- end -}}
{{- if has .component (list "gateway" "edge") }}{{ $_ := set $env "DEKAG_CLOUD_ADDRESS" (printf "%s-cloud:50054" $name) }}{{ end -}}
{{- if eq .component "user" }}{{ $_ := set $env "DEKAG_DOWNLINK_ADDRESS" (printf "%s-channel:50052" $name) }}{{ end -}}
{{- if eq .component "channel" }}{{ $_ := set $env "DEKAG_DOWNLINK_ADDRESS" (printf "%s-edge:50053" $name) }}{{ end -}}
{{- if has .component (list "cloud" "distiller") }}{{ $_ := set $env "DEKAG_DATA_DIR" "/data" }}{{ end -}}
{{- if eq .component "distiller" }}{{ $_ := set $env "DEKAG_HEALTH_FILE" "/tmp/alive" }}{{ end -}}
{{- range $key, $value := mergeOverwrite $env (deepCopy $values.env) (deepCopy (index $values .component).env) }}
- {name: {{ $key }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end }}

{{/* the secret with the gateway's HTTPS certificate, empty for plain HTTP */}}
{{- define "dekag.https" -}}
{{- .Values.gateway.httpsSecret | default (ternary (printf "%s-gateway-tls" (include "dekag.name" .)) "" .Values.tls.enabled) -}}
{{- end }}

{{/* how a service says that its models are loaded and that it is not about to stop */}}
{{- define "dekag.probe" -}}
{{- if eq .component "distiller" -}}
exec: {command: [python, -m, services.common.healthcheck, "file:/tmp/alive"]}
{{- else if eq .component "gateway" -}}
httpGet: {path: {{ .path }}, port: main, scheme: {{ ternary "HTTPS" "HTTP" (ne (include "dekag.https" .root) "") }}}
{{- else if .root.Values.tls.enabled -}}
exec: {command: [python, -m, services.common.healthcheck, "127.0.0.1:{{ .port }}"]}
{{- else -}}
grpc: {port: {{ .port }}}
{{- end }}
{{- end }}
