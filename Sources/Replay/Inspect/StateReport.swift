import Foundation
import VMCore

/// What is shown of a guest's state.
public struct StateOptions: Sendable {
    public var memory: [AddressRange] = []
    public var format = MemoryFormat.hex
    /// Linear addresses whose translation is shown.
    public var pages: [UInt64] = []
    public var backtrace = false
    public var symbols = SymbolTable()
    /// How the guest's stack is unwound, where it is a kernel that says so.
    public var unwinding: KernelUnwinding?

    public init() {}
}

/// The state of a guest at one point, for a person and for a program. Reads only.
public struct StateReport {
    private let position: Position
    private let state: CPUState
    private let devices: DeviceTree?
    /// The exit that brought the guest here, in words.
    private let lastExit: String?
    private let code: (before: [Disassembly], after: [Disassembly])
    private let stack: [UInt8]
    private let memory: [(range: AddressRange, bytes: [UInt8])]
    private let pages: [(address: UInt64, entries: [PageWalk.Entry], physical: GuestPhysicalAddress?)]
    private let frames: [Backtrace.Frame]
    private let options: StateOptions
    private let text: MemoryText

    private static let instructionsBefore = 4
    private static let instructionsAfter = 8
    private static let stackWords = 8

    public init(
        _ guest: any GuestView, at position: Position, platform: Platform?, transcript: Transcript,
        options: StateOptions
    ) throws {
        self.position = position
        self.options = options
        state = try guest.state()
        devices = try platform.map { try DeviceTree($0) }
        lastExit = try transcript.event(at: position.exit).map { ReplayEnvironment.text($0) }
        let core = state.core
        text = MemoryText(core, symbols: options.symbols)
        let walk = PageWalk(memory: guest.memory, state: core)
        code = Self.code(around: core, walk)
        stack = walk.bytes(at: core.ss.base &+ core.general.rsp, count: Self.stackWords * text.wordBytes)
        memory = try options.memory.map { ($0, try guest.bytes($0)) }
        pages = options.pages.map { address in
            let found = walk.entries(address)
            return (address, found.entries, found.physical)
        }
        frames = options.backtrace ? Backtrace(core, memory: guest.memory, unwinding: options.unwinding).frames() : []
    }

    private static func code(around core: CoreRegisters, _ walk: PageWalk)
        -> (before: [Disassembly], after: [Disassembly])
    {
        let disassembler = Disassembler(core)
        let rip = core.linearRIP
        let span = min(UInt64(instructionsBefore * Disassembler.longest), rip)
        let behind = walk.bytes(at: rip - span, count: Int(span))
        let before =
            behind.count == Int(span)
            ? disassembler.before(behind, endingAt: rip, count: instructionsBefore) : []
        let after = disassembler.all(walk.bytes(at: rip, count: instructionsAfter * Disassembler.longest), at: rip)
        return (before, Array(after.prefix(instructionsAfter)))
    }

    // MARK: Text

    public func lines(_ style: Style) -> [String] {
        var lines = [
            style.bold("exit \(position)") + (lastExit.map { ": \($0)" } ?? "")
                + (position.instructions > 0 ? ", and \(position.instructions) instructions" : "")
        ]
        lines.append(style.dim("  " + RegisterText.mode(state.core)))
        lines += registerLines(style)
        lines += ["", style.heading("code")]
        lines += code.before.map { "    " + text.line($0) }
        lines += code.after.enumerated().map { $0 == 0 ? "  > " + style.bold(text.line($1)) : "    " + text.line($1) }
        if code.after.isEmpty { lines.append("    \(hex(state.core.linearRIP)) isn't mapped") }
        lines += ["", style.heading("stack")]
        lines += text.lines(stack, at: state.core.ss.base &+ state.core.general.rsp, as: .words).map { "    " + $0 }
        for (range, bytes) in memory {
            lines += [
                "", style.heading("memory \(range.isPhysical ? "phys " : "")\(options.symbols.text(range.address))"),
            ]
            lines += text.lines(bytes, at: range.address, as: options.format).map { "    " + $0 }
            if bytes.count < range.count {
                lines.append("    \(hex(range.address &+ UInt64(bytes.count))) isn't mapped")
            }
        }
        for (address, entries, physical) in pages { lines += pageLines(address, entries, physical, style) }
        if !frames.isEmpty {
            lines += ["", style.heading("backtrace")]
            lines += frames.map { "    " + SymbolTable.text($0.address, name($0)) + $0.kind.note }
        }
        lines += ["", style.heading("devices")]
        lines += devices?.lines(style) ?? ["    not known at this exit"]
        return lines
    }

    private func registerLines(_ style: Style) -> [String] {
        let fields = state.fields(options.symbols)
        var lines: [String] = []
        func field(_ name: String) -> RegisterField { fields.first { $0.name == name }! }
        func named(_ name: String, _ value: String) -> String {
            style.dim(name.padding(toLength: max(4, name.count), withPad: " ", startingAt: 0)) + " " + value
        }
        for row in stride(from: 0, to: 16, by: 4) {
            lines.append(
                "  "
                    + Vocabulary.general[row..<(row + 4)].map {
                        named($0.name, String(field($0.name).value.dropFirst(2)))
                    }
                    .joined(separator: "  "))
        }
        let meanings = Vocabulary.general.map { field($0.name) }.filter { !$0.meaning.isEmpty }
        if !meanings.isEmpty {
            lines.append("  " + meanings.map { "\($0.name)=<\($0.meaning)>" }.joined(separator: "  "))
        }
        lines.append("  " + named("rip", options.symbols.text(state.core.general.rip)))
        lines.append("  " + named("rflags", "\(field("rflags").value) [\(field("rflags").meaning)]"))
        for (name, path) in Vocabulary.segments {
            let segment = state.core[keyPath: path]
            lines.append(
                "  "
                    + named(
                        name, "\(field(name).value) \(hex(segment.base))+\(hex(segment.limit))  \(field(name).meaning)")
            )
        }
        lines.append(
            "  " + named("gdtr", "\(hex(state.core.gdtr.base))+\(hex(state.core.gdtr.limit))") + "  "
                + named("idtr", "\(hex(state.core.idtr.base))+\(hex(state.core.idtr.limit))"))
        for name in ["cr0", "cr4", "efer"] {
            lines.append("  " + named(name, "\(field(name).value) [\(field(name).meaning)]"))
        }
        lines.append("  " + ["cr2", "cr3", "cr8"].map { named($0, field($0).value) }.joined(separator: "  "))
        let events = RegisterText.events(state.events)
        if !events.isEmpty { lines.append("  " + events.joined(separator: ", ")) }
        return lines
    }

    private func name(_ frame: Backtrace.Frame) -> String? {
        switch frame.kind {
        case .call, .guess: options.symbols.name(ofReturnTo: frame.address)
        case .here, .interrupted, .user: options.symbols.name(of: frame.address)
        }
    }

    private func pageLines(
        _ address: UInt64, _ entries: [PageWalk.Entry], _ physical: GuestPhysicalAddress?,
        _ style: Style
    ) -> [String] {
        var lines = ["", style.heading("pages of \(options.symbols.text(address))")]
        if entries.isEmpty { lines.append("    paging is off") }
        lines += entries.map { entry in
            let level = entry.level.rawValue.padding(toLength: 6, withPad: " ", startingAt: 0)
            return
                "    \(level)at \(hex(entry.address.rawValue))  "
                + RegisterText.hex(entry.value, digits: 2 * entry.bytes) + "  "
                + entry.flags
        }
        lines.append("    " + (physical.map { "physical \(hex($0.rawValue))" } ?? "not mapped"))
        return lines
    }

    // MARK: JSON

    public var json: JSON {
        let fields = state.fields(options.symbols)
        return [
            "exit": JSON(position.exit.rawValue), "instructions": JSON(position.instructions),
            "last_exit": JSON(lastExit), "mode": .string(RegisterText.mode(state.core)),
            "registers": .object(fields.map { ($0.name, .string($0.value)) }),
            "decoded": .object(fields.filter { !$0.meaning.isEmpty }.map { ($0.name, .string($0.meaning)) }),
            "code": .array(
                (code.before + code.after).map { instruction in
                    [
                        "address": JSON(instruction.address), "bytes": .string(RegisterText.bytes(instruction.bytes)),
                        "text": .string(instruction.text(options.symbols)),
                        "symbol": JSON(options.symbols.name(of: instruction.address)),
                        "is_next": .bool(instruction.address == state.core.linearRIP),
                    ]
                }),
            "stack": [
                "address": JSON(state.core.ss.base &+ state.core.general.rsp),
                "bytes": .string(RegisterText.bytes(stack)),
            ],
            "memory": .array(
                memory.map { range, bytes in
                    [
                        "address": JSON(range.address), "physical": .bool(range.isPhysical),
                        "wanted": JSON(range.count),
                        "bytes": .string(RegisterText.bytes(bytes)),
                    ]
                }),
            "pages": .array(
                pages.map { address, entries, physical in
                    [
                        "address": JSON(address), "physical": JSON(physical?.rawValue),
                        "entries": .array(
                            entries.map { entry in
                                [
                                    "level": .string(entry.level.rawValue), "address": JSON(entry.address.rawValue),
                                    "value": JSON(entry.value), "flags": .string(entry.flags),
                                ]
                            }),
                    ]
                }),
            "backtrace": .array(
                frames.map { frame in
                    [
                        "address": JSON(frame.address), "symbol": JSON(name(frame)), "kind": .string(frame.kind.rawValue),
                        "guess": .bool(frame.kind == .guess),
                    ]
                }),
            "devices": devices?.json ?? .null,
        ]
    }
}

extension Backtrace.Kind {
    fileprivate var note: String {
        switch self {
        case .here, .call: ""
        case .interrupted: "  (interrupted here)"
        case .user: "  (user mode)"
        case .guess: "  (a guess)"
        }
    }
}

extension PageWalk.Entry {
    /// The entry's flags. Source: Intel SDM Vol. 3A, tables 4-4 to 4-20.
    var flags: String {
        guard isPresent else { return "not present" }
        var names: [RegisterText.Bit] = [("A", 5), ("PCD", 4), ("PWT", 3), ("US", 2), ("RW", 1), ("P", 0)]
        if isLeaf {
            names = [("G", 8)] + (level == .table ? [("PAT", 7)] : [("PAT", 12), ("PS", 7)]) + [("D", 6)] + names
        }
        if bytes == 8 { names.insert(("NX", 63), at: 0) }
        return RegisterText.bits(value, names)
    }
}
