/// Descriptors and segment registers. Source: Intel SDM Vol. 3A, chapters 3 and 5.
extension Core {
    /// An entry of the GDT or LDT and where it lies.
    struct Descriptor {
        var raw: UInt64
        var address: UInt64

        var access: UInt8 { UInt8(truncatingIfNeeded: raw >> 40) }
        var type: UInt8 { access & 15 }
        var isSegment: Bool { access & 0x10 != 0 }
        var isPresent: Bool { access & 0x80 != 0 }
        var dpl: UInt8 { access >> 5 & 3 }
        var isCode: Bool { isSegment && type & 8 != 0 }
        var isConforming: Bool { isCode && type & 4 != 0 }
        var isReadable: Bool { isSegment && (type & 8 == 0 || type & 2 != 0) }
        var isWritable: Bool { isSegment && type & 0xA == 2 }
        var isLong: Bool { raw >> 53 & 1 != 0 }
        var isBig: Bool { raw >> 54 & 1 != 0 }

        func segment(_ selector: UInt16) -> Segment {
            var limit = UInt32(truncatingIfNeeded: raw & 0xFFFF | raw >> 32 & 0xF_0000)
            if raw >> 55 & 1 != 0 { limit = limit << 12 | 0xFFF }
            return Segment(base: raw >> 16 & 0xFF_FFFF | (raw >> 56) << 24, limit: limit, selector: selector,
                           attributes: UInt16(truncatingIfNeeded: raw >> 40 & 0xFF | raw >> 44 & 0xF00))
        }
    }

    func selectorFault(_ vector: UInt8, _ selector: UInt16, external: Bool = false) -> Trap {
        .exception(vector, code: UInt32(selector & 0xFFFC) | (external ? 1 : 0))
    }

    func descriptor(_ selector: UInt16, fault vector: UInt8 = Vector.gp) throws(Trap) -> Descriptor {
        let offset = UInt64(selector & 0xFFF8)
        let base: UInt64
        if selector & 4 != 0 {
            guard s.ldtr.isUsable, offset + 7 <= UInt64(s.ldtr.limit) else { throw selectorFault(vector, selector) }
            base = s.ldtr.base
        } else {
            guard offset + 7 <= UInt64(s.gdtr.limit) else { throw selectorFault(vector, selector) }
            base = s.gdtr.base
        }
        return Descriptor(raw: try systemLoad(base &+ offset, UInt64.self), address: base &+ offset)
    }

    /// Sets the accessed bit of a segment's descriptor.
    func markAccessed(_ descriptor: inout Descriptor) throws(Trap) {
        guard descriptor.isSegment, descriptor.type & 1 == 0 else { return }
        descriptor.raw |= 1 << 40
        try systemStore(descriptor.address &+ 5, descriptor.access)
    }

    /// The same for one that a far transfer or an interrupt loads.
    func markTransferAccessed(_ descriptor: inout Descriptor) throws(Trap) {
        if s.profile.transfersSetAccessed { try markAccessed(&descriptor) }
    }

    func setSegment(_ index: UInt8, _ value: Segment) {
        segment(index).pointee = value
        updateMode()
    }

    private func realSegment(_ index: UInt8, _ selector: UInt16) {
        var segment = segment(index).pointee
        segment.selector = selector
        segment.base = UInt64(selector) << 4
        if isVirtual8086 {
            segment.limit = 0xFFFF
            segment.attributes = 0xF3
        }
        setSegment(index, segment)
    }

    /// MOV to a segment register and whatever does the same; CS aside.
    func loadSegment(_ index: UInt8, _ selector: UInt16) throws(Trap) {
        if isRealOrV86 { return realSegment(index, selector) }
        let cpl = s.cpl
        let rpl = UInt8(selector & 3)
        if selector & 0xFFFC == 0 {
            var segment = Segment(selector: selector, attributes: SegmentRegister.unusable)
            if index == SegmentIndex.ss {
                guard is64, cpl != 3, rpl == cpl else { throw .protection }
                // CPL lives in its DPL, so the null segment is kept as a usable one.
                segment.limit = 0xFFF
                segment.attributes = 0xC93 | UInt16(cpl) << 5
            }
            return setSegment(index, segment)
        }
        var descriptor = try descriptor(selector)
        if index == SegmentIndex.ss {
            guard rpl == cpl, descriptor.isWritable, descriptor.dpl == cpl else { throw selectorFault(Vector.gp, selector) }
            guard descriptor.isPresent else { throw selectorFault(Vector.ss, selector) }
        } else {
            guard descriptor.isReadable, descriptor.isConforming || max(cpl, rpl) <= descriptor.dpl else {
                throw selectorFault(Vector.gp, selector)
            }
            guard descriptor.isPresent else { throw selectorFault(Vector.np, selector) }
        }
        try markAccessed(&descriptor)
        setSegment(index, descriptor.segment(selector))
    }

    func loadLDTR(_ selector: UInt16) throws(Trap) {
        guard selector & 0xFFFC != 0 else {
            s.ldtr = Segment(selector: selector, attributes: SegmentRegister.unusable)
            return
        }
        guard selector & 4 == 0 else { throw selectorFault(Vector.gp, selector) }
        let descriptor = try descriptor(selector)
        guard !descriptor.isSegment, descriptor.type == 2 else { throw selectorFault(Vector.gp, selector) }
        guard descriptor.isPresent else { throw selectorFault(Vector.np, selector) }
        s.ldtr = try systemSegment(descriptor, selector)
    }

    func loadTR(_ selector: UInt16) throws(Trap) {
        guard selector & 0xFFFC != 0 else { throw .protection }
        guard selector & 4 == 0 else { throw selectorFault(Vector.gp, selector) }
        var descriptor = try descriptor(selector)
        guard !descriptor.isSegment, descriptor.type == 9 || descriptor.type == 1 && !isLong else {
            throw selectorFault(Vector.gp, selector)
        }
        guard descriptor.isPresent else { throw selectorFault(Vector.np, selector) }
        let made = try systemSegment(descriptor, selector)
        descriptor.raw |= 2 << 40  // busy
        try systemStore(descriptor.address &+ 5, descriptor.access)
        s.tr = made
        s.tr.attributes |= 2
    }

    /// An LDT's or TSS's segment; in long mode its descriptor has 16 bytes.
    private func systemSegment(_ descriptor: Descriptor, _ selector: UInt16) throws(Trap) -> Segment {
        var segment = descriptor.segment(selector)
        guard isLong else { return segment }
        let high = try systemLoad(descriptor.address &+ 8, UInt64.self)
        segment.base |= (high & 0xFFFF_FFFF) << 32
        guard UInt64(bitPattern: Int64(bitPattern: segment.base << 16) >> 16) == segment.base else {
            throw selectorFault(Vector.gp, selector)
        }
        return segment
    }

    // MARK: The stack

    /// A stack as something pushes to it: the present one or the one that a gate leads to.
    struct Stack {
        var pointer: UInt64
        var mask: UInt64
        /// Nil in 64-bit mode.
        var segment: Segment?
    }

    var stack: Stack {
        Stack(pointer: gpr(GPR.rsp), mask: s.stackMask, segment: is64 ? nil : segment(SegmentIndex.ss).pointee)
    }

    func commit(_ stack: Stack) { setGPR(GPR.rsp, stack.pointer, mask: stack.mask) }

    func address(_ stack: Stack, _ offset: UInt64, _ bytes: UInt64) throws(Trap) -> UInt64 {
        guard let segment = stack.segment else { return offset }
        let last = offset &+ (bytes - 1)
        let fits = segment.type & 0xC == 4
            ? offset > UInt64(segment.limit) && last <= (segment.attributes & 1 << 10 != 0 ? 0xFFFF_FFFF : 0xFFFF)
            : last <= UInt64(segment.limit)
        guard fits else { throw .exception(Vector.ss, code: 0) }
        return (segment.base &+ offset) & 0xFFFF_FFFF
    }

    /// Pushes 1 << `size` bytes; with supervisor rights for the processor's own frames.
    func push(_ value: UInt64, size: UInt8, on stack: inout Stack, system: Bool = false) throws(Trap) {
        let bytes = UInt64(1) << UInt64(size)
        let offset = (stack.pointer &- bytes) & stack.mask
        let address = try address(stack, offset, bytes)
        switch (size, system) {
        case (1, false): try store(address, UInt16(truncatingIfNeeded: value))
        case (2, false): try store(address, UInt32(truncatingIfNeeded: value))
        case (_, false): try store(address, value)
        case (1, true): try systemStore(address, UInt16(truncatingIfNeeded: value))
        case (2, true): try systemStore(address, UInt32(truncatingIfNeeded: value))
        case (_, true): try systemStore(address, value)
        }
        stack.pointer = stack.pointer & ~stack.mask | offset
    }

    /// Takes 1 << `size` bytes off, of which it reads 1 << `reading`.
    func pop(size: UInt8, from stack: inout Stack, reading: UInt8? = nil) throws(Trap) -> UInt64 {
        let bytes = UInt64(1) << UInt64(size)
        let offset = stack.pointer & stack.mask
        let address = try address(stack, offset, bytes)
        let value: UInt64
        switch reading ?? size {
        case 1: value = UInt64(try load(address, UInt16.self))
        case 2: value = UInt64(try load(address, UInt32.self))
        default: value = try load(address, UInt64.self)
        }
        stack.pointer = stack.pointer & ~stack.mask | (offset &+ bytes) & stack.mask
        return value
    }

    /// The stack of a privilege level from the TSS, outside long mode.
    func innerStack(_ level: UInt8) throws(Trap) -> (pointer: UInt64, selector: UInt16) {
        let is32 = s.tr.type & 8 != 0
        let offset = is32 ? 4 + 8 * UInt64(level) : 2 + 4 * UInt64(level)
        guard s.tr.isUsable, offset + (is32 ? 7 : 3) <= UInt64(s.tr.limit) else {
            throw selectorFault(Vector.ts, s.tr.selector)
        }
        let base = s.tr.base &+ offset
        return is32
            ? (UInt64(try systemLoad(base, UInt32.self)), try systemLoad(base &+ 4, UInt16.self))
            : (UInt64(try systemLoad(base, UInt16.self)), try systemLoad(base &+ 2, UInt16.self))
    }

    /// A stack pointer of the 64-bit TSS: `index` 0–2 for privilege levels, 4–10 for IST 1–7.
    func innerStack64(_ index: UInt64) throws(Trap) -> UInt64 {
        let offset = 4 + 8 * index
        guard s.tr.isUsable, offset + 7 <= UInt64(s.tr.limit) else { throw selectorFault(Vector.ts, s.tr.selector) }
        let pointer = try systemLoad(s.tr.base &+ offset, UInt64.self)
        guard UInt64(bitPattern: Int64(bitPattern: pointer << 16) >> 16) == pointer else { throw .exception(Vector.ss, code: 0) }
        return pointer
    }

    /// The checks on a stack segment for another privilege level.
    func stackSegment(_ selector: UInt16, level: UInt8, fault vector: UInt8) throws(Trap) -> Descriptor {
        guard selector & 0xFFFC != 0 else { throw selectorFault(vector, selector) }
        let descriptor = try descriptor(selector, fault: vector)
        guard UInt8(selector & 3) == level, descriptor.dpl == level, descriptor.isWritable else {
            throw selectorFault(vector, selector)
        }
        guard descriptor.isPresent else { throw selectorFault(Vector.ss, selector) }
        return descriptor
    }
}
