import VMCore

/// Writes a line for each instruction of a stretch of a trace: where, what, and what it changed.
public final class InstructionTracer {
    public enum Format: Sendable {
        case text
        /// An object a line.
        case json
    }

    private let format: Format
    private let symbols: SymbolTable
    private var line: LineBuffer
    private var code: CodeTexts
    public private(set) var instructions: UInt64 = 0

    // Where the instruction begins that is under way.
    private var exit = ExitNumber.start
    private var count: UInt64 = 0

    private static let registers: [StaticString] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rflags",
    ]
    /// Bytes of one write that are shown.
    private static let shownBytes = 64

    /// `write` takes the lines, many at a time.
    public init(_ format: Format, symbols: SymbolTable, write: @escaping (UnsafeRawBufferPointer) -> Void) {
        self.format = format
        self.symbols = symbols
        line = LineBuffer(flush: write)
        code = CodeTexts(format: format, symbols: symbols)
    }

    deinit { line.free() }

    /// Writes out what is left.
    public func flush() { line.writeOut() }

    /// Watches an engine whose replay stands at `environment`.
    func watch(_ engine: SoftEngine, _ environment: ReplayEnvironment) -> InstructionWatch {
        InstructionWatch(
            begins: { [unowned self, unowned engine, unowned environment] view in
                exit = environment.last
                count = engine.retiredSinceExit?.rawValue ?? 0
                code.find(view, engine)
            },
            ends: { [unowned self] view in instruction(view) },
            enters: { [unowned self, unowned engine, unowned environment] vector, view in
                exit = environment.last
                count = engine.retiredSinceExit?.rawValue ?? 0
                entry(vector, view)
            })
    }

    private func instruction(_ view: InstructionView) {
        instructions += 1
        appendPosition()
        code.withCurrent { line.append($0) }
        appendChanges(view)
    }

    private func entry(_ vector: UInt8, _ view: InstructionView) {
        appendPosition()
        if format == .json {
            line.append("\"enters\":\"0x")
            line.append(hex: UInt64(vector))
            line.append("\"")
        } else {
            line.append("-- vector 0x")
            line.append(hex: UInt64(vector))
            line.append(" enters")
        }
        appendWrites(view)
        if format == .json { line.append("}") }
        line.endLine()
    }

    /// An exit of the guest's own making, in the words of `vmrr events`.
    func exit(_ exit: Exit, number: ExitNumber) {
        var text = exit.identity.text
        if exit.data == nil, exit.identity.size > 0 { text += " = \(hex(exit.value))" }
        if format == .json {
            line.append("{\"exit\":")
            line.append(decimal: number.rawValue)
            line.append(",\"event\":\"")
            line.append(text)
            line.append("\"}")
        } else {
            line.append("-- exit ")
            line.append(decimal: number.rawValue)
            line.append(": ")
            line.append(text)
        }
        line.endLine()
    }

    private func appendPosition() {
        if format == .json { line.append("{\"at\":\"") }
        line.append(decimal: exit.rawValue)
        if count > 0 {
            line.append("+")
            line.append(decimal: count)
        }
        line.append(format == .json ? "\"," : " ")
    }

    private func appendChanges(_ view: InstructionView) {
        var any = false
        view.forEachChangedRegister { number, value in
            if format == .json {
                line.append(any ? "," : ",\"registers\":{")
                line.append("\"")
                line.append(Self.registers[number])
                line.append("\":\"0x")
                line.append(hex: value)
                line.append("\"")
            } else {
                line.append(any ? " " : "  ; ")
                line.append(Self.registers[number])
                line.append("=")
                line.append(hex: value)
            }
            any = true
        }
        appendVectors(view, &any)
        if format == .json, any { line.append("}") }
        appendWrites(view)
        if format == .json { line.append("}") }
        line.endLine()
    }

    private func appendVectors(_ view: InstructionView, _ any: inout Bool) {
        view.forEachChangedVector { number, place in
            if format == .json {
                line.append(any ? "," : ",\"registers\":{")
                line.append("\"ymm")
            } else {
                line.append(any ? " " : "  ; ")
                line.append("ymm")
            }
            line.append(decimal: UInt64(number))
            line.append(format == .json ? "\":\"0x" : "=")
            for i in (0..<32).reversed() { line.append(byte: place.load(fromByteOffset: i, as: UInt8.self)) }
            if format == .json { line.append("\"") }
            any = true
        }
    }

    private func appendWrites(_ view: InstructionView) {
        var any = false
        view.forEachWrite { address, bytes in
            let shown = bytes.prefix(Self.shownBytes)
            if format == .json {
                line.append(any ? "," : ",\"memory\":[")
                line.append("{\"gpa\":\"0x")
                line.append(hex: address.rawValue)
                line.append("\",\"size\":")
                line.append(decimal: UInt64(bytes.count))
                line.append(",\"bytes\":\"")
                for byte in shown { line.append(byte: byte) }
                line.append("\"}")
            } else {
                line.append("  [")
                line.append(hex: address.rawValue)
                line.append("]=")
                if bytes.count <= 8 {
                    line.append(hex: bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) })
                } else {
                    for byte in shown { line.append(byte: byte) }
                    if bytes.count > shown.count { line.append("...") }
                }
            }
            any = true
        }
        if format == .json, any { line.append("]") }
        if view.hasMoreWrites { line.append(format == .json ? ",\"more_memory\":true" : " ...") }
    }
}

/// Texts of instructions, made once for each piece of code.
private struct CodeTexts {
    private struct Entry {
        var address: UInt64 = 0
        var low: UInt64 = 0
        var high: UInt64 = 0
        var mode = UInt32.max
        /// Of its text in `texts`.
        var start = 0
        var count = 0
    }

    private static let entryCount = 1 << 16
    /// When texts take more than this, all are made anew: code that changes all the time has a new one each time.
    private static let mostBytes = 64 << 20

    private let format: InstructionTracer.Format
    private let symbols: SymbolTable
    private var entries = [Entry](repeating: Entry(), count: Self.entryCount)
    private var texts: [UInt8] = []
    private var current = 0

    init(format: InstructionTracer.Format, symbols: SymbolTable) {
        self.format = format
        self.symbols = symbols
    }

    /// Makes the instruction that begins the current one.
    mutating func find(_ view: InstructionView, _ engine: SoftEngine) {
        let address = view.address
        current = Int(truncatingIfNeeded: (address ^ address >> 16) & UInt64(Self.entryCount - 1))
        let (low, high) = view.code() ?? bytes(at: address, engine)
        let found = entries[current]
        if found.address == address, found.low == low, found.high == high, found.mode == view.mode { return }
        if texts.count > Self.mostBytes {
            texts.removeAll(keepingCapacity: true)
            entries = [Entry](repeating: Entry(), count: Self.entryCount)
        }
        let text = Array(describe(address, low, high, engine).utf8)
        entries[current] = Entry(address: address, low: low, high: high, mode: view.mode, start: texts.count, count: text.count)
        texts += text
    }

    func withCurrent(_ body: (UnsafeBufferPointer<UInt8>) -> Void) {
        texts.withUnsafeBufferPointer {
            body(UnsafeBufferPointer(rebasing: $0[entries[current].start..<(entries[current].start + entries[current].count)]))
        }
    }

    private func bytes(at address: UInt64, _ engine: SoftEngine) -> (UInt64, UInt64) {
        let registers = (try? engine.registers()) ?? CoreRegisters()
        let bytes = PageWalk(memory: engine.memory, state: registers).bytes(at: address, count: 16)
        func word(_ bytes: ArraySlice<UInt8>) -> UInt64 { bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) } }
        return (word(bytes.prefix(8)), word(bytes.dropFirst(8)))
    }

    private func describe(_ address: UInt64, _ low: UInt64, _ high: UInt64, _ engine: SoftEngine) -> String {
        let code = [low, high].flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } }
        let found = ((try? engine.registers()).flatMap { Disassembler($0).one(code[0..<15], at: address) })
        let text = found?.text(symbols) ?? "(bad)"
        if format == .text { return "\(symbols.text(address)): \(text)" }
        let bytes = code.prefix(found?.bytes.count ?? 1).map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
        var members = "\"rip\":\"\(hex(address))\","
        if let name = symbols.name(of: address) { members += "\"symbol\":\(JSON.string(name).text(pretty: false))," }
        return members + "\"code\":\"\(bytes)\",\"text\":\(JSON.string(text).text(pretty: false))"
    }
}

extension Timeline {
    /// Moves from one position to another and has `tracer` write each instruction on the way. Takes the soft engine.
    ///
    /// - Throws: as `seek`; `HostError.needsSoftEngine` with another engine.
    public func trace(from start: Position, to end: Position?, with tracer: InstructionTracer) throws {
        guard let soft = engine as? SoftEngine else { throw HostError.needsSoftEngine("instruction by instruction") }
        try seek(to: start)
        soft.watch = tracer.watch(soft, environment)
        let observe = observe
        self.observe = { [unowned environment] exit in tracer.exit(exit, number: environment.last) }
        defer {
            soft.watch = nil
            self.observe = observe
        }
        guard let end else { return try play() }
        if end.exit > position.exit { try play(to: end.exit) }
        if end > position { try seek(to: end) }
    }
}
