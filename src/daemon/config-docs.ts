import { z } from 'zod';
import { configSchema } from './config-schema.js';

/** The tables of docs/configuration.md, from the schema: what a key is called, whether it must be there, what it means. */
interface JsonSchema {
  readonly type?: string;
  readonly properties?: Readonly<Record<string, JsonSchema>>;
  readonly items?: JsonSchema;
  readonly anyOf?: readonly JsonSchema[];
  readonly required?: readonly string[];
  readonly enum?: readonly string[];
  readonly default?: unknown;
  readonly description?: string;
}

const SIZES = new Set(['pagePool', 'dirtyMax', 'nsds[].size']);
const DURATIONS = new Set(['dirtyAge', 'leaseTtl']);

function typeText(key: string, schema: JsonSchema): string {
  if (SIZES.has(key)) return 'size';
  if (DURATIONS.has(key)) return 'duration';
  if (schema.enum !== undefined) return schema.enum.join(' \\| ');
  const object = schema.anyOf?.find((part) => part.type === 'object');
  if (object !== undefined) return 'map or null';
  if (schema.type === 'array') return schema.items?.type === 'object' ? 'list of maps' : 'list of strings';
  return schema.type === 'object' ? 'map' : (schema.type ?? 'string');
}

function defaultText(schema: JsonSchema, required: boolean): string {
  if (schema.default === undefined) return required ? 'required' : '-';
  return typeof schema.default === 'string' ? schema.default : JSON.stringify(schema.default);
}

function rows(schema: JsonSchema, prefix: string): string[] {
  return Object.entries(schema.properties ?? {}).flatMap(([name, property]) => {
    const key = prefix + name;
    const required = schema.required?.includes(name) ?? false;
    const row = `| \`${key}\` | ${typeText(key, property)} | ${defaultText(property, required)} | ${property.description ?? ''} |`;
    const inner = property.anyOf?.find((part) => part.type === 'object') ?? property.items ?? property;
    return [row, ...rows(inner, property.type === 'array' ? `${key}[].` : `${key}.`)];
  });
}

export function configurationTable(): string {
  const schema = z.toJSONSchema(configSchema, { io: 'input', unrepresentable: 'any' }) as JsonSchema;
  return ['| key | type | default | meaning |', '|---|---|---|---|', ...rows(schema, '')].join('\n');
}
