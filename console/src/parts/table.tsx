// A table whose columns say how they are shown, and by which field the server can order them.
import type { ComponentChildren } from "preact";

export interface Column<T> {
  readonly title: string;
  readonly cell: (row: T) => ComponentChildren;
  /** Field of order_by. Absent: the server does not order by it. */
  readonly field?: string;
  /** Numbers are on the right. */
  readonly number?: boolean;
  /** Left out on phones. */
  readonly wide?: boolean;
}

export interface Order {
  /** For example "start_time desc". */
  readonly by: string;
  readonly change: (by: string) => void;
}

export function Table<T>(props: {
  /** What the rows are, for readers of screens. */
  label: string;
  columns: readonly Column<T>[];
  rows: readonly T[];
  keyOf: (row: T) => string;
  order?: Order;
  /** Whether the rows are those of another filter, while new ones are loaded. */
  stale?: boolean;
}) {
  const { label, columns, rows, keyOf, order, stale } = props;
  const kind = (column: Column<T>) =>
    [column.number && "number", column.wide && "wide"].filter(Boolean).join(" ");
  return (
    <div class="scroll" role="region" aria-label={label} tabIndex={0} aria-busy={stale ?? false}>
      <table>
        <thead>
          <tr>
            {columns.map((column) => (
              <Heading key={column.title} column={column} kind={kind(column)} order={order} />
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={keyOf(row)}>
              {columns.map((column) => (
                <td key={column.title} class={kind(column)}>
                  {column.cell(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Heading<T>(props: { column: Column<T>; kind: string; order: Order | undefined }) {
  const { column, kind, order } = props;
  const { field } = column;
  if (!order || field === undefined)
    return (
      <th scope="col" class={kind}>
        {column.title}
      </th>
    );
  const [by, direction = "asc"] = order.by.split(" ");
  const active = by === field;
  const falls = active && direction === "desc";
  // What people look for first is at the top: the newest, the highest. A second click turns it around.
  const next = falls ? `${field} asc` : `${field} desc`;
  return (
    <th scope="col" class={kind} aria-sort={active ? (falls ? "descending" : "ascending") : "none"}>
      <button type="button" class="sort" onClick={() => order.change(next)}>
        {column.title}
        <span aria-hidden="true">{active ? (falls ? " ↓" : " ↑") : ""}</span>
      </button>
    </th>
  );
}
