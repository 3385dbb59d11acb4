import { createServer } from 'node:http';
import { collectDefaultMetrics, Gauge, Registry } from 'prom-client';

/**
 * The metrics endpoint: every counter of the engine as a Prometheus metric, and node's own. A name `nsd.readSectors` becomes
 * `holdfast_nsd_read_sectors`. All are exported as gauges: which of them only count up is said by their documentation, and a
 * restart resets them as Prometheus expects of either.
 */
export interface MetricsServer {
  readonly port: number;
  close(): Promise<void>;
}

export const metricName = (counter: string): string =>
  `holdfast_${counter
    .replace(/([a-z0-9])([A-Z])/g, '$1_$2')
    .replace(/[^A-Za-z0-9]+/g, '_')
    .toLowerCase()}`;

export async function serveMetrics(
  address: { readonly host: string; readonly port: number },
  counters: () => Promise<Record<string, number>>,
): Promise<MetricsServer> {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const gauges = new Map<string, Gauge>();
  const server = createServer((request, response) => {
    if (request.method !== 'GET' || request.url !== '/metrics') {
      response.writeHead(404).end();
      return;
    }
    const collect = async (): Promise<string> => {
      for (const [name, value] of Object.entries(await counters())) {
        let gauge = gauges.get(name);
        if (gauge === undefined) {
          gauge = new Gauge({ name: metricName(name), help: name, registers: [registry] });
          gauges.set(name, gauge);
        }
        gauge.set(value);
      }
      return registry.metrics();
    };
    collect().then(
      (text) => response.writeHead(200, { 'content-type': registry.contentType }).end(text),
      () => response.writeHead(500).end(),
    );
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(address.port, address.host, resolve);
  });
  const bound = server.address();
  return {
    port: typeof bound === 'object' && bound !== null ? bound.port : address.port,
    close: () =>
      new Promise((resolve) => {
        server.closeAllConnections();
        server.close(() => resolve());
      }),
  };
}
