import CXXHash

// The canonical encoding: every field in a fixed order, little-endian, with a version byte first. Encoder and decoder
// go through the same list of fields, `visit`, so that they can't drift.

/// Walks the fields of a state in their canonical order.
private protocol FieldVisitor {
    mutating func field<T: FixedWidthInteger>(_ value: inout T)
    mutating func bytes(_ value: inout [UInt8])
    mutating func words(_ value: inout [UInt64])
}

extension FieldVisitor {
    mutating func flag(_ value: inout Bool) {
        var byte: UInt8 = value ? 1 : 0
        field(&byte)
        value = byte != 0
    }

    mutating func visit(_ s: inout SegmentRegister) {
        field(&s.selector)
        field(&s.base)
        field(&s.limit)
        field(&s.attributes)
    }

    mutating func visit(_ t: inout DescriptorTable) {
        field(&t.base)
        field(&t.limit)
    }

    mutating func visit(_ g: inout GeneralRegisters) {
        field(&g.rax)
        field(&g.rbx)
        field(&g.rcx)
        field(&g.rdx)
        field(&g.rsi)
        field(&g.rdi)
        field(&g.rsp)
        field(&g.rbp)
        field(&g.r8)
        field(&g.r9)
        field(&g.r10)
        field(&g.r11)
        field(&g.r12)
        field(&g.r13)
        field(&g.r14)
        field(&g.r15)
        field(&g.rip)
        field(&g.rflags)
    }

    mutating func visit(_ c: inout ControlRegisters) {
        field(&c.cr0)
        field(&c.cr2)
        field(&c.cr3)
        field(&c.cr4)
        field(&c.cr8)
        field(&c.efer)
        field(&c.xcr0)
    }

    mutating func visit(_ d: inout DebugRegisters) {
        for i in 0..<4 { field(&d.address[i]) }
        field(&d.dr6)
        field(&d.dr7)
    }

    mutating func visit(_ f: inout FloatingPointState) {
        field(&f.controlWord)
        field(&f.statusWord)
        field(&f.tags)
        field(&f.mxcsr)
        bytes(&f.st)
        bytes(&f.xmm)
        bytes(&f.ymmHigh)
    }

    mutating func visit(_ last: inout LastInstruction) {
        field(&last.address)
        field(&last.operand)
        field(&last.opcode)
    }

    mutating func visit(_ e: inout EventState) {
        flag(&e.exceptionInjected)
        flag(&e.exceptionPending)
        field(&e.exceptionVector)
        flag(&e.exceptionHasErrorCode)
        field(&e.exceptionErrorCode)
        flag(&e.exceptionHasPayload)
        field(&e.exceptionPayload)
        flag(&e.interruptInjected)
        field(&e.interruptVector)
        flag(&e.interruptSoft)
        field(&e.interruptShadow)
        flag(&e.nmiInjected)
        field(&e.nmiPending)
        flag(&e.nmiMasked)
        flag(&e.tripleFaultPending)
        flag(&e.halted)
    }

    mutating func visit(_ core: inout CoreRegisters) {
        visit(&core.general)
        visit(&core.es)
        visit(&core.cs)
        visit(&core.ss)
        visit(&core.ds)
        visit(&core.fs)
        visit(&core.gs)
        visit(&core.ldtr)
        visit(&core.tr)
        visit(&core.gdtr)
        visit(&core.idtr)
        visit(&core.control)
    }

    mutating func visit(_ state: inout CPUState) {
        visit(&state.core)
        visit(&state.debug)
        visit(&state.floatingPoint)
        words(&state.msrs)
        visit(&state.events)
    }
}

private struct Encoder: FieldVisitor {
    var output: [UInt8] = []

    mutating func field<T: FixedWidthInteger>(_ value: inout T) {
        withUnsafeBytes(of: value.littleEndian) { output.append(contentsOf: $0) }
    }
    mutating func bytes(_ value: inout [UInt8]) { output.append(contentsOf: value) }
    mutating func words(_ value: inout [UInt64]) {
        for i in value.indices { field(&value[i]) }
    }
}

private struct Decoder: FieldVisitor {
    var input: ArraySlice<UInt8>
    var failed = false

    mutating func field<T: FixedWidthInteger>(_ value: inout T) {
        let size = MemoryLayout<T>.size
        guard input.count >= size else { return failed = true }
        var result: T = 0
        for byte in input.prefix(size).reversed() { result = (size > 1 ? result << 8 : 0) | T(truncatingIfNeeded: byte) }
        value = result
        input = input.dropFirst(size)
    }
    mutating func bytes(_ value: inout [UInt8]) {
        guard input.count >= value.count else { return failed = true }
        value = Array(input.prefix(value.count))
        input = input.dropFirst(value.count)
    }
    mutating func words(_ value: inout [UInt64]) {
        for i in value.indices { field(&value[i]) }
    }
}

extension CPUState {
    /// What lies behind all else, in this order: each adds to the version.
    private static let encodingVersion: UInt8 = 1
    private static let counter: UInt8 = 1
    private static let lastInstruction: UInt8 = 2

    /// The state as bytes, the same for equal states.
    public func encoded() -> [UInt8] {
        var encoder = Encoder()
        encoder.output.reserveCapacity(1200)
        let hasLast = floatingPoint.last != LastInstruction()
        encoder.output.append(Self.encodingVersion + (timestampCounter == nil ? 0 : Self.counter) + (hasLast ? Self.lastInstruction : 0))
        var copy = self
        encoder.visit(&copy)
        if var counter = timestampCounter { encoder.field(&counter) }
        if hasLast { encoder.visit(&copy.floatingPoint.last) }
        return encoder.output
    }

    /// Nil when the bytes aren't a state that `encoded` could have made.
    public init?(encoded: [UInt8]) {
        guard let version = encoded.first, case 0...3 = version &- Self.encodingVersion else { return nil }
        let more = version - Self.encodingVersion
        self.init()
        var decoder = Decoder(input: encoded.dropFirst())
        decoder.visit(&self)
        if more & Self.counter != 0 {
            var counter: UInt64 = 0
            decoder.field(&counter)
            timestampCounter = counter
        }
        if more & Self.lastInstruction != 0 {
            decoder.visit(&floatingPoint.last)
            // Equal states have equal bytes.
            if floatingPoint.last == LastInstruction() { return nil }
        }
        guard !decoder.failed, decoder.input.isEmpty else { return nil }
    }

    /// XXH3-128 of the canonical encoding.
    public var digest: Digest128 { encoded().withUnsafeBytes { Digest128(of: $0) } }
}

/// Feeds each field to a hash as one 64-bit word, without a buffer on the heap.
private struct Hasher64: FieldVisitor {
    // Invariant: `words` has room for `capacity` words.
    let words: UnsafeMutablePointer<UInt64>
    var count = 0
    /// 18 general registers, 8 segments of 4 fields, 2 tables of 2, 7 control registers.
    static let capacity = 18 + 8 * 4 + 2 * 2 + 7

    mutating func field<T: FixedWidthInteger>(_ value: inout T) {
        precondition(count < Self.capacity)
        words[count] = UInt64(truncatingIfNeeded: value)
        count += 1
    }
    mutating func bytes(_ value: inout [UInt8]) { preconditionFailure("core registers hold no arrays") }
    mutating func words(_ value: inout [UInt64]) { preconditionFailure("core registers hold no arrays") }
}

extension CoreRegisters {
    /// XXH3-64 of the fields in their canonical order: cheap enough for every arrival at a breakpoint.
    public var digest: UInt64 {
        withUnsafeTemporaryAllocation(of: UInt64.self, capacity: Hasher64.capacity) { buffer in
            guard let words = buffer.baseAddress else { return 0 }
            var hasher = Hasher64(words: words)
            var copy = self
            hasher.visit(&copy)
            return XXH3_64bits(words, hasher.count * 8)
        }
    }
}
