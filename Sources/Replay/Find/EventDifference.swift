import Trace
import VMCore

/// Where the events of two recordings part.
public struct EventDifference {
    public enum Kind: String, Sendable {
        /// The guests were given different values.
        case input
        /// An interrupt entered at another point, or only in one of them.
        case timing
        /// The guests gave different values.
        case output
        /// The guests did different things, or had different registers or memory, though all that entered was equal.
        case state
        /// One recording goes on where the other has ended.
        case end
    }

    public let kind: Kind
    /// The first events that differ; nil where a recording has ended.
    public let a: TraceEvent?
    public let b: TraceEvent?
    /// Where the same interrupt entered on the other side, where the difference is one of timing.
    public let moved: TraceEvent?
    /// The events before, which are equal, and those from the difference on, of both sides.
    let before: [TraceEvent]
    let after: (a: [TraceEvent], b: [TraceEvent])

    /// The last exit that both have in common.
    public let lastCommonExit: ExitNumber

    private static let contextBefore = 3
    private static let contextAfter = 6
    /// Events in which the other side's interrupt is looked for.
    private static let search = 100_000

    /// Nil where all events are equal. Host times and the recorder's own notes don't count.
    public init?(_ a: TraceReader, _ b: TraceReader, progress: (Double) -> Void = { _ in }) throws {
        var (left, right) = (try Walk(a), try Walk(b))
        var before: [TraceEvent] = []
        var count: UInt64 = 0
        while true {
            guard let x = left.next, let y = right.next else {
                if left.next == nil, right.next == nil { return nil }
                break
            }
            // A register check that only one recorder made says nothing.
            if x.identity.kind == .registerCheck, y.identity.kind != .registerCheck {
                try left.advance()
                continue
            }
            if y.identity.kind == .registerCheck, x.identity.kind != .registerCheck {
                try right.advance()
                continue
            }
            guard Self.areEqual(x, y) else { break }
            before.append(x)
            if before.count > 2 * Self.contextBefore { before.removeFirst(before.count - Self.contextBefore) }
            try left.advance()
            try right.advance()
            count += 1
            if count & 0xFFFF == 0 { progress(Double(count) / Double(max(1, a.events))) }
        }
        (self.a, self.b) = (left.next, right.next)
        self.before = Array(before.suffix(Self.contextBefore))
        lastCommonExit = before.last?.exit ?? a.firstExit
        kind = Self.kind(left.next, right.next)
        moved = kind == .timing ? try Self.other(left, right) : nil
        after = (try left.take(Self.contextAfter), try right.take(Self.contextAfter))
    }

    /// Goes through the events that say something of the guest.
    private struct Walk {
        var cursor: EventCursor
        var next: TraceEvent?

        init(_ reader: TraceReader) throws {
            cursor = reader.cursor()
            try advance()
        }

        mutating func advance() throws {
            repeat { next = try cursor.next() } while next?.isForDevices == true
        }

        /// The next event and those after it; a copy goes, this one stays.
        func take(_ count: Int) throws -> [TraceEvent] {
            var copy = self
            var events: [TraceEvent] = []
            while events.count < count, let event = copy.next {
                events.append(event)
                try copy.advance()
            }
            return events
        }

        /// The next event that satisfies `predicate`, if it comes soon.
        func first(where predicate: (TraceEvent) -> Bool) throws -> TraceEvent? {
            var copy = self
            for _ in 0..<EventDifference.search {
                guard let event = copy.next else { return nil }
                if predicate(event) { return event }
                try copy.advance()
            }
            return nil
        }
    }

    private static func areEqual(_ a: TraceEvent, _ b: TraceEvent) -> Bool {
        guard a.identity == b.identity, a.value == b.value, a.payload == b.payload else { return false }
        switch (a.anchor, b.anchor) {
        case (nil, nil): return true
        case (let x?, let y?): return x.isSamePoint(as: y)
        default: return false
        }
    }

    private static func kind(_ a: TraceEvent?, _ b: TraceEvent?) -> Kind {
        guard let a, let b else { return .end }
        let isSame = a.identity.kind == b.identity.kind && a.identity.address == b.identity.address
        if a.isInterrupt || b.isInterrupt {
            guard isSame, let x = a.anchor, let y = b.anchor else { return .timing }
            return x.hasSameRegisters(as: y) ? .state : .timing
        }
        switch (a.identity.kind, b.identity.kind) {
        case (.memoryWrite, _), (_, .memoryWrite), (.registerWrite, _), (_, .registerWrite): return .input
        case (.endAtAnchor, _), (_, .endAtAnchor): return .end
        default: break
        }
        var (left, right) = (a.identity, b.identity)
        (left.flags, right.flags) = (0, 0)
        guard left == right else { return .state }
        switch left.kind {
        case .portWrite, .mmioWrite, .msrWrite: return a.identity.flags == b.identity.flags ? .output : .input
        case .registerCheck: return .state
        default: return .input
        }
    }

    /// The interrupt on the side that doesn't have it here.
    private static func other(_ left: Walk, _ right: Walk) throws -> TraceEvent? {
        guard let a = left.next, let b = right.next else { return nil }
        if a.isInterrupt, b.isInterrupt, a.identity.address == b.identity.address { return nil }
        let (wanted, side) = a.isInterrupt ? (a, right) : (b, left)
        return try side.first { $0.isInterrupt && $0.identity.address == wanted.identity.address }
    }

    // MARK: Report

    public func lines(_ names: (a: String, b: String), _ style: Style) -> [String] {
        var lines = [
            style.removed("--- \(names.a)"), style.added("+++ \(names.b)"),
            style.heading("@@ \(title) @@"),
        ]
        lines += before.map { " " + $0.line }
        for (x, y) in Self.align(after.a, after.b) {
            if let x, let y, Self.areEqual(x, y) {
                lines.append(" " + x.line)
            } else {
                if let x { lines.append(style.removed("-" + x.line)) }
                if let y { lines.append(style.added("+" + y.line)) }
            }
        }
        if a == nil { lines.append("\(names.a) ends here") }
        if b == nil { lines.append("\(names.b) ends here") }
        if let moved {
            lines.append("on the other side: \(moved.text), after exit \(moved.exit.rawValue)")
        }
        return lines
    }

    /// The difference in a line.
    public var title: String {
        let event = a?.isInterrupt == false && b?.isInterrupt == true ? b : a ?? b
        let place =
            event.map { $0.identity.kind.isExit ? "at exit \($0.exit.rawValue)" : "after exit \($0.exit.rawValue)" }
            ?? "at the end"
        return "\(kind.rawValue), \(place)" + (event.map { ": \($0.identity.text)" } ?? "")
    }

    public var json: JSON {
        [
            "kind": .string(kind.rawValue), "last_common_exit": JSON(lastCommonExit.rawValue),
            "a": a?.json ?? .null, "b": b?.json ?? .null, "moved_to": moved?.json ?? .null,
            "before": .array(before.map(\.json)), "after_a": .array(after.a.map(\.json)),
            "after_b": .array(after.b.map(\.json)),
        ]
    }

    /// Pairs two short lists so that as many as possible are equal: by their longest common subsequence.
    private static func align(_ a: [TraceEvent], _ b: [TraceEvent]) -> [(TraceEvent?, TraceEvent?)] {
        var length = Array(repeating: Array(repeating: 0, count: b.count + 1), count: a.count + 1)
        for i in a.indices.reversed() {
            for j in b.indices.reversed() {
                length[i][j] = areEqual(a[i], b[j]) ? length[i + 1][j + 1] + 1 : max(length[i + 1][j], length[i][j + 1])
            }
        }
        var pairs: [(TraceEvent?, TraceEvent?)] = []
        var (i, j) = (0, 0)
        while i < a.count || j < b.count {
            if i < a.count, j < b.count, areEqual(a[i], b[j]) {
                pairs.append((a[i], b[j]))
                (i, j) = (i + 1, j + 1)
            } else if j == b.count || i < a.count && length[i + 1][j] >= length[i][j + 1] {
                pairs.append((a[i], nil))
                i += 1
            } else {
                pairs.append((nil, b[j]))
                j += 1
            }
        }
        return pairs
    }
}
