import Foundation
import VMCore

/// What two states have that differs: registers, devices, memory.
public struct StateDifference {
    /// One of the two.
    public struct Side {
        public var name: String
        public var state: CPUState
        public var memory: GuestMemory
        public var platform: Platform?

        public init(name: String, state: CPUState, memory: GuestMemory, platform: Platform?) {
            self.name = name
            self.state = state
            self.memory = memory
            self.platform = platform
        }
    }

    public struct Options: Sendable {
        public var symbols = SymbolTable()
        /// Memory that doesn't count.
        public var ignored: [AddressRange] = []
        /// Accessed and dirty bits of page-table entries don't count.
        public var masksAccessedDirty = true
        /// Runs of changed bytes that are listed.
        public var limit = 64

        public init() {}
    }

    private let names: (a: String, b: String)
    private let registers: [(a: RegisterField, b: RegisterField)]
    /// Nil where one side's devices aren't known.
    private let devices: [(path: String, a: String?, b: String?)]?
    private let memory: MemoryDifference
    private let changes: [MemoryDifference.Change]
    private let symbols: SymbolTable
    private let map: MemoryLayoutMap
    /// How long it took to compare memory.
    public let seconds: Double

    /// - Throws: `FindError` where an ignored run isn't mapped on the first side.
    public init(_ a: Side, _ b: Side, options: Options) throws {
        names = (a.name, b.name)
        let fields = (a.state.fields(options.symbols), b.state.fields(options.symbols))
        registers = zip(fields.0, fields.1).filter { $0.value != $1.value }.map { ($0, $1) }
        devices =
            if let x = a.platform, let y = b.platform {
                DeviceTree.differences(try DeviceTree(x), try DeviceTree(y))
            } else {
                nil
            }
        let view = FixedView(state: a.state, memory: a.memory)
        let ignored = try options.ignored.flatMap { range in
            guard let pieces = try view.physical(range) else { throw FindError.notMapped(range, at: a.name) }
            return pieces
        }
        let start = hostTime()
        memory = MemoryDifference(a.memory, b.memory, masked: options.masksAccessedDirty, ignoring: ignored)
        seconds = (hostTime() - start).seconds
        changes = memory.changes(limit: options.limit)
        symbols = changes.isEmpty ? SymbolTable() : options.symbols.physical(view)
        map = a.memory.map
    }

    /// Whether nothing differs that counts.
    public var isEmpty: Bool { registers.isEmpty && devices?.isEmpty != false && memory.pages.isEmpty }

    /// The map of physical memory with the pages that differ, as a PNG file.
    public func picture() -> [UInt8] { memory.picture().encoded() }

    // MARK: Text

    public func lines(_ style: Style, statistics: Bool) -> [String] {
        if isEmpty {
            return [
                "no difference"
                    + (memory.maskedPages.isEmpty
                        ? "" : " but accessed and dirty bits in \(memory.maskedPages.count) pages")
            ]
        }
        var lines = [style.removed("--- \(names.a)"), style.added("+++ \(names.b)")]
        if statistics { return lines + statisticsLines }
        if !registers.isEmpty { lines.append(style.heading("@@ registers @@")) }
        for (a, b) in registers {
            func text(_ field: RegisterField) -> String {
                "\(field.name.padding(toLength: 15, withPad: " ", startingAt: 0)) \(field.value)"
                    + (field.meaning.isEmpty ? "" : "  \(field.meaning)")
            }
            lines.append(style.removed("-" + text(a)))
            lines.append(style.added("+" + text(b)))
        }
        if let devices, !devices.isEmpty {
            lines.append(style.heading("@@ devices @@"))
            for (path, a, b) in devices {
                if let a { lines.append(style.removed("-\(path) \(a)")) }
                if let b { lines.append(style.added("+\(path) \(b)")) }
            }
        } else if devices == nil {
            lines.append("the devices' state is not known at both points")
        }
        return lines + memoryLines(style)
    }

    private func memoryLines(_ style: Style) -> [String] {
        var lines: [String] = []
        if !memory.pages.isEmpty {
            lines.append(style.heading("@@ memory: \(memory.bytes) bytes in \(memory.pages.count) pages @@"))
            lines += memory.pageRuns.prefix(changes.count).map { first, count in
                " pages \(hex(first * UInt64(pageSize)))–\(hex((first + count) * UInt64(pageSize) - 1)): "
                    + "\((first..<(first + count)).reduce(0) { $0 + (memory.bytesOfPage[$1] ?? 0) }) bytes"
            }
        }
        for change in changes {
            let shown = 32
            func text(_ bytes: [UInt8]) -> String {
                bytes.prefix(shown).map { RegisterText.hex(UInt64($0), digits: 2) }.joined(separator: " ")
                    + (bytes.count > shown ? " … \(bytes.count) bytes" : "")
            }
            let place = symbols.text(change.address.rawValue)
            lines.append(style.removed("-\(place)  \(text(change.a))"))
            lines.append(style.added("+\(place)  \(text(change.b))"))
        }
        let listed = changes.reduce(0) { sum, change in sum + zip(change.a, change.b).filter { $0 != $1 }.count }
        if listed < memory.bytes { lines.append(" … and more: --limit lists more runs, --stat counts") }
        if !memory.maskedPages.isEmpty {
            lines.append(
                " \(memory.maskedPages.count) pages differ in accessed and dirty bits alone (--strict counts them)")
        }
        return lines
    }

    private var statisticsLines: [String] {
        var lines = [" registers  \(registers.count)", " devices    \(devices.map { "\($0.count)" } ?? "not known")"]
        lines += regions.filter { $0.pages > 0 }.map {
            " \(hex($0.range.lowerBound))–\(hex($0.range.upperBound - 1))  \($0.pages) pages, \($0.bytes) bytes"
        }
        lines.append(
            " memory     \(memory.pages.count) pages, \(memory.bytes) bytes; "
                + "accessed and dirty bits alone: \(memory.maskedPages.count) pages")
        return lines
    }

    /// Counts for the regions of RAM, large ones in pieces of 16 MiB.
    private var regions: [(range: Range<UInt64>, pages: Int, bytes: Int)] {
        let piece: UInt64 = 16 << 20
        var regions: [(range: Range<UInt64>, pages: Int, bytes: Int)] = []
        for region in map.regions {
            var start = region.address.rawValue
            while start < region.end.rawValue {
                let end = min((start / piece + 1) * piece, region.end.rawValue)
                let first = memory.pages.partitioningIndex { $0 * UInt64(pageSize) >= start }
                let last = memory.pages.partitioningIndex { $0 * UInt64(pageSize) >= end }
                let pages = memory.pages[first..<last]
                regions.append((start..<end, pages.count, pages.reduce(0) { $0 + (memory.bytesOfPage[$1] ?? 0) }))
                start = end
            }
        }
        return regions
    }

    // MARK: JSON

    public var json: JSON {
        [
            "a": .string(names.a), "b": .string(names.b), "equal": .bool(isEmpty),
            "registers": .array(
                registers.map { a, b in
                    [
                        "name": .string(a.name), "a": .string(a.value), "b": .string(b.value),
                        "meaning_a": .string(a.meaning),
                        "meaning_b": .string(b.meaning),
                    ]
                }),
            "devices": devices.map { list in
                .array(list.map { path, a, b in ["path": .string(path), "a": JSON(a), "b": JSON(b)] })
            } ?? .null,
            "memory": [
                "pages": JSON(memory.pages.count), "bytes": JSON(memory.bytes),
                "accessed_dirty_pages": JSON(memory.maskedPages.count),
                "runs": .array(
                    memory.pageRuns.map { first, count in
                        ["address": JSON(first * UInt64(pageSize)), "pages": JSON(count)]
                    }),
                "regions": .array(
                    regions.filter { $0.pages > 0 }.map { range, pages, bytes in
                        [
                            "address": JSON(range.lowerBound), "end": JSON(range.upperBound), "pages": JSON(pages),
                            "bytes": JSON(bytes),
                        ]
                    }),
                "changes": .array(
                    changes.map { change in
                        [
                            "address": JSON(change.address.rawValue),
                            "symbol": JSON(symbols.name(of: change.address.rawValue)),
                            "a": .string(RegisterText.bytes(change.a)), "b": .string(RegisterText.bytes(change.b)),
                        ]
                    }),
                "seconds": .number(seconds),
            ],
        ]
    }
}

/// A state that somebody holds.
struct FixedView: GuestView {
    let fixed: CPUState
    let memory: GuestMemory

    init(state: CPUState, memory: GuestMemory) {
        fixed = state
        self.memory = memory
    }

    func registers() -> CoreRegisters { fixed.core }
    func state() -> CPUState { fixed }
}

extension SymbolTable {
    /// The symbols at the physical addresses that they are mapped to.
    func physical(_ view: FixedView) -> SymbolTable {
        let walk = PageWalk(memory: view.memory, state: view.fixed.core)
        return SymbolTable(
            symbols.compactMap { symbol in
                walk.physical(symbol.address).map { Symbol(name: symbol.name, address: $0.rawValue, size: symbol.size) }
            })
    }
}
